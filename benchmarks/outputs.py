"""What further outputs cost beside mean vectors: the pass of some packs, each way in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import timed
from packedesm.embedding.readout import Readout
from packedesm.esm2.attention import select_backend
from packedesm.esm2.checkpoints import read
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import MODELS
from packedesm.options import EmbedPlan
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs
from packedesm.sequences.fasta import Record

SEED = 1
TOKENS = 4096  # of a pack, as on a CPU
MAX_LENGTH = 1022
MODEL = "esm2_t6_8M_UR50D"  # its geometry, with random weights
LAYERS = ("mean", "mean.layer2", "mean.layer4")
ASKED = {
    "mean": ("mean",),
    "three_layers": LAYERS,
    "three_layers_and_logits": (*LAYERS, "logits"),
    "residue": ("mean", "residue"),
    "contacts": ("mean", "contacts"),
}


def measure_outputs(
    records: list[Record], scratch: Path, sizes: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Compute packs with different outputs, and what the language head does of it alone."""
    path = scratch / "random.pt"
    write_random_checkpoint(path, MODELS[MODEL], SEED)
    write_random_regression(regression_file(path), MODELS[MODEL], SEED)
    weights = read(path, needs={LANGUAGE_HEAD, CONTACT_HEAD}, regression=regression_file(path))
    batches = _packs(records, sizes["packs"])
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = PackedESM2.from_fair_esm(
            weights.state, weights.geometry, dtype, heads=weights.heads
        )
        ways = {name: _way(model, arrays, batches) for name, arrays in ASKED.items()}
        ways["head_alone"] = partial(_head, model, batches)
        for way in ways.values():
            way()  # the first call loads libraries
        row: dict[str, Any] = {"dtype": str(dtype)[6:], "tokens": _tokens(batches)}
        row |= timed(repeats, **ways)
        for name in ways:
            row[f"{name}_over_mean"] = row[name]["seconds"] / row["mean"]["seconds"]
        rows.append(row)
    return rows


def _packs(records: list[Record], most: int) -> list[PackedBatch]:
    """Return packs of the records, evenly spaced in their plan."""
    sequences = [record.sequence[:MAX_LENGTH] for record in records]
    packs = plan_packs(np.array([len(sequence) + 2 for sequence in sequences]), TOKENS)
    chosen = np.unique(np.linspace(0, len(packs) - 1, most).astype(int))
    return [
        VarlenCollator()(
            [Protein(i, sequences[i], [(0, len(sequences[i]))]) for i in packs[pack].tolist()]
        )
        for pack in chosen
    ]


def _tokens(batches: Sequence[PackedBatch]) -> int:
    return sum(sum(batch.lengths) for batch in batches)


def _way(
    model: PackedESM2, arrays: tuple[str, ...], batches: Sequence[PackedBatch]
) -> Callable[[], None]:
    weight = model.embed_tokens.weight
    backend = select_backend("auto", weight.device, weight.dtype, model.geometry.head_dim).name
    dtype = str(weight.dtype)[6:]
    output_dtype = "float32" if dtype == "float32" else "float16"
    plan = EmbedPlan(dtype, output_dtype, arrays, backend, "torch", TOKENS, reasons={})
    return partial(_each, Readout(model, plan).of, batches)


@torch.inference_mode()
def _each(of: Callable[[PackedBatch], Any], batches: Sequence[PackedBatch]) -> None:
    for batch in batches:
        of(batch)


@torch.inference_mode()
def _head(model: PackedESM2, batches: Sequence[PackedBatch]) -> None:
    """Compute the logits of all residues from vectors that are there."""
    weight = model.embed_tokens.weight
    assert model.language_head is not None
    for batch in batches:
        hidden = torch.ones(len(batch.residue_tokens), weight.shape[1], dtype=weight.dtype)
        model.language_head(hidden, weight)
