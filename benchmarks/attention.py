"""Our attention on a CPU beside torch's, on one pack of proteins."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import timed
from packedesm.esm2.attention import Sequences, attend, select_backend
from packedesm.sequences.fasta import Record

SEED = 1
TOKENS = 4096  # of a pack, as on a CPU
HEAD_DIMS = (16, 24, 32, 64)  # of ESM-2 of 8M, 35M, 150M, and 650M and 3B
MAX_LENGTH = 1022


def measure_attention(
    records: list[Record], _scratch: Path, sizes: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Attend within the proteins of a pack, by what ``auto`` chooses and by ``sdpa``."""
    lengths = draw(records)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    sequences = Sequences(cu_seqlens, max(lengths), lengths)
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for head_dim in HEAD_DIMS:
        for dtype in (torch.float32, torch.bfloat16):
            shape = (sum(lengths), 3, sizes["heads"], head_dim)
            q, k, v = torch.randn(shape, generator=generator).to(dtype).unbind(1)
            ours = select_backend("auto", torch.device("cpu"), dtype, head_dim).name
            ways = {
                name: partial(attend, backend, q, k, v, sequences)
                for name, backend in {"packedesm": ours, "sdpa": "sdpa"}.items()
            }
            for way in ways.values():
                way()  # the first call loads libraries
            row = {
                "backend": ours,
                "head_dim": head_dim,
                "dtype": str(dtype)[6:],
                "tokens": shape[0],
            }
            row |= timed(repeats, **ways)
            # Two products of (L, head_dim) by L in each head.
            operations = 4 * shape[2] * head_dim * float(np.square(lengths, dtype=float).sum())
            for name in ways:
                row[name]["flops_per_second"] = operations / row[name]["seconds"]
            row["sdpa_over_packedesm"] = row["sdpa"]["seconds"] / row["packedesm"]["seconds"]
            rows.append(row)
    return rows


def draw(records: list[Record]) -> list[int]:
    """Return lengths in tokens of records drawn until a pack is full, the longest first."""
    known = [min(len(record.sequence), MAX_LENGTH) + 2 for record in records]
    drawn: list[int] = []
    for length in np.random.default_rng(SEED).choice(known, TOKENS).tolist():
        if sum(drawn) + length <= TOKENS:
            drawn.append(length)
    return sorted(drawn, reverse=True)
