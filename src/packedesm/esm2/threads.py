"""How many CPU threads a computation is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# About a quarter of a second of one core. Threads wait for one another by spinning: of 60 tokens
# through the smallest model two took six times the CPU time of one, and longer. Not for vectors of
# a run: with another number of threads the libraries' products may give other last bits.
_WORTH_SEVERAL = 20e9


@contextmanager
def threads_worth(flops: float) -> Iterator[None]:
    """Let torch use one CPU thread in the block if that has few operations, else as many as before.

    Parameters
    ----------
    flops
        Of the block, see `packedesm.esm2.geometry.Geometry.flops`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if flops < _WORTH_SEVERAL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
