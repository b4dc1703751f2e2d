"""What further outputs cost beside mean vectors: the forward pass of some packs, each way in turn."""

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
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.registry import MODELS
from packedesm.options import EmbedPlan
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs
from packedesm.sequences.fasta import Record

SEED = 1
TOKENS = 4096  # of a pack, as on a CPU
MAX_LENGTH = 1022
MODEL = "esm2_t6_8M_UR50D"  # its geometry, with random weights
ASKED = {
    "mean": ("mean",),
    "three_layers": ("mean", "mean.layer2", "mean.layer4"),
    "three_layers_and_logits": ("mean", "mean.layer2", "mean.layer4", "logits"),
    "residue": ("mean", "residue"),
    "contacts": ("mean", "contacts"),
}


def measure_outputs(
    records: list[Record], scratch: Path, sizes: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Compute packs with different outputs, and the language head's part of it alone."""
    batches = _packs(records)[: sizes["packs"]]
    path = scratch / "random.pt"
    write_random_checkpoint(path, MODELS[MODEL], SEED)
    return [_of_dtype(path, dtype, batches, repeats) for dtype in ("float32", "bfloat16")]
