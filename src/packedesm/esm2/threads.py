"""Work that is done by one CPU thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one CPU thread in the block.

    Threads that share small matrices wait for one another by spinning: in fair-esm two took 2.5 to
    4 times the CPU time of one. And the sums of one are rounded alike, however many there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
