"""fair-esm at work on several proteins side by side: threads of one torch thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from packedesm.esm2.threads import one_thread
from packedesm.reference.model import Reference

# Calls a function with a model and each of some things, and gives what it returns, in their order.
Map = Callable[[Callable[[Reference, Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def side_by_side(reference: Reference, threads: int) -> Iterator[Map]:
    """Give what calls a function for several things at the same time, each with a model of its own.

    They have the weights of `reference` in common. Whatever ends the block early, no thread goes on
    for longer than a layer takes.
    """
    own, stop = threading.local(), threading.Event()

    def begin() -> None:
        torch.set_num_threads(1)
        own.reference = reference.twin(stop)

    with one_thread():
        if threads == 1:  # a signal ends it at once
            yield lambda work, things: (work(reference, thing) for thing in things)
            return
        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            try:
                yield lambda work, things: pool.map(lambda x: work(own.reference, x), things)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
