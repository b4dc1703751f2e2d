"""A small run as its embedding jobs leave it, for the tests of what comes after them."""

from pathlib import Path

import numpy as np

from packedesm.files import write_json, write_text
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from packedesm.paths import Layout
from packedesm.sequences.shards import write_shards

OPTIONS = {
    "max_length": 60,
    "long_sequences": "truncate",
    "window_overlap": 20,
    "empty_sequences": "error",
    "deduplicate": True,
}
BUDGET = 100
PACK_SECONDS = 0.5  # each pack of the run took this long
COLUMNS = ("pack", "records", "residues", "tokens", "fill")
TIMES = ("wait_seconds", "forward_seconds", "finished_seconds", "pieces", "float32_records")


def write_run(
    root: Path,
    fasta: str,
    shards: int,
    *,
    model: dict | None = None,
    run: dict | None = None,
    **options,
) -> Layout:
    """Shard `fasta` and write what one job per shard would have recorded about itself."""
    layout = Layout(root)
    source = root / "input.fasta"
    root.mkdir(parents=True, exist_ok=True)
    source.write_text(fasta, encoding="utf-8")
    options = OPTIONS | options
    write_shards([source], layout, shards, width=64, **options)
    policy = {key: options[key] for key in ("max_length", "long_sequences", "window_overlap")}
    for shard in range(shards):
        _write_job(layout, shard, policy, model or {}, run or {})
    return layout


def off(layout: Layout) -> None:
    """Write the verification.json of a run that was not verified."""
    worst = {"cosine": None, "relative_l2": None, "row": None, "output": None}
    result = {"passed": None, "sequences": 0, "min_cosine": 0.9995, "max_relative_l2": 1e-5}
    result |= {"reference": "fair-esm", "worst": worst, "records": [], "seconds": 0.0}
    write_json(layout.verification, result)


def _write_job(layout: Layout, shard: int, policy: dict, model: dict, run: dict) -> None:
    dataset = SequenceDataset(layout.shard_fasta(shard), **policy)
    packs = plan_packs(dataset.tokens, BUDGET)
    lines = ["\t".join(COLUMNS + TIMES)]
    for pack, items in enumerate(packs[p] for p in range(len(packs))):
        tokens = int(packs.tokens[pack])
        facts = (pack, len(items), int(dataset.embedded_lengths[items].sum()), tokens)
        times = (0.1, 0.4, PACK_SECONDS * (pack + 1), 1, 0)
        lines.append("\t".join(map(str, (*facts, tokens / max(tokens, BUDGET), *times))))
    write_text(layout.shard_packs(shard), "\n".join(lines) + "\n")
    seconds = PACK_SECONDS * len(packs)
    record = {
        "shard": shard,
        "records": len(dataset),
        "residues": int(dataset.embedded_lengths.sum()),
        "tokens": int(np.sum(dataset.tokens)),
        "model": MODEL | model,
        "dtype": "float32",
        "output_dtype": "float32",
        "outputs": ["mean"],
        "attention": {"backend": "sdpa", "reason": "named in the configuration"},
        "token_budget": BUDGET,
        "packs": len(packs),
        "fill": packs.fill,
        "flops": 1e9 * len(packs),
        "matmul_ceiling_flops": 1e10,
        "seconds": {
            "setup": 1.0,
            "embedding": seconds,
            "forward": 0.4 * len(packs),
            "waiting": 0.1 * len(packs),
            "total": 1.0 + seconds,
        },
        "device": {
            "kind": "cpu",
            "name": "a processor",
            "uuid": None,
            "memory_bytes": 8 << 30,
            "threads": 2,
        },
        "gpu": {
            "available": False,
            "reason": "the job ran on a CPU",
            "samples": [],
            "energy_j": None,
        },
        "host": "laptop",
        "started": f"2025-01-01T00:00:{10 * shard:02d}+00:00",
        "versions": {"python": "3.11.4", "packedesm": "0.1.0"},
        "finished": f"2025-01-01T00:00:{10 * shard + 1 + seconds:04.1f}+00:00",
        "restarts": 0,
        "recomputed_packs": 0,
        "discarded_parts": 0,
        "split_packs": 0,
        "float32_rows": [],
    }
    write_json(layout.shard_run(shard), record | run)


MODEL = {
    "model": "esm2_t6_8M_UR50D",
    "path": "/checkpoints/esm2_t6_8M_UR50D.pt",
    "format": "fair-esm",
    "layers": 6,
    "width": 320,
    "heads": 20,
    "parameters": 7840121,
    "bytes": 30000000,
    "sha256": "0" * 64,
    "meaningless": False,
    "for_trial": False,
    "digest_checked": True,
}
