"""A process of its own for each contender, which lives until the comparison ends.

So each has its own packages, threads and peak memory, all can be asked in turn, and one that
crashes does no harm to the others.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from packedesm.errors import UserError

# glibc gives large blocks back to the system when they are freed, and the system hands them out
# again page by page, zeroed. Kept instead, they make fair-esm 2 to 2.5 times as fast on a CPU (8M,
# 1,000 residues, batches of 2,048 tokens: 4 tensors of 168 MB in each layer) and change little for
# programs with small intermediate results.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


class Failed(Exception):
    """A contender cannot do what it was asked for; the message is one phrase that says why."""


@dataclass(frozen=True)
class Answer:
    """What a call returned, and what it took."""

    value: Any
    seconds: float  # without what the contender sets apart
    apart: float
    cpu_seconds: float  # of all threads: much less than threads x seconds tells of a busy machine
    peak_bytes: int  # resident memory, or on a GPU what torch allocated there


class Worker:
    """A contender in its process, seen from outside."""

    def __init__(self, module: str, threads: int, keep_memory: bool = True) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        self._connection, child = context.Pipe()
        arguments = (child, module, threads)  # not a daemon: it may start workers of its own
        self._process = context.Process(target=_serve, args=arguments)
        with _environment(KEEP_MEMORY if keep_memory else {}):  # read when a process starts
            self._process.start()
        child.close()

    def call(self, method: str, *arguments: Any, **options: Any) -> Answer:
        """Call the module's `load`, and then methods of what that returned.

        Raises
        ------
        Failed
            If that raised an exception, or the process ended.
        """
        self.ask(method, *arguments, **options)
        return self.answer()

    def ask(self, method: str, *arguments: Any, **options: Any) -> None:
        """Begin a call whose `answer` is fetched later."""
        with suppress(ConnectionError):  # told by `answer`
            self._connection.send((method, arguments, options))

    def wait(self) -> None:
        """Wait until `answer` would not."""
        self._connection.poll(None)

    def answer(self) -> Answer:
        """Wait for what `ask` began."""
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection, module: str, threads: int) -> None:
    # Read when the libraries are loaded, so they are set before the first import of torch.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    sys.stdout = sys.stderr  # standard output belongs to the table
    warnings.simplefilter("ignore")  # on weights that no contender needs here
    contender = None
    while True:
        try:
            method, arguments, options = connection.recv()
        except EOFError:
            return
        try:
            if method == "load":
                method = importlib.import_module(module).load
            else:
                method = getattr(contender, method)
            answer = _timed(method, arguments, options, contender)
        except Exception as error:
            connection.send(_phrase(error))
        else:
            if contender is None:
                contender = answer.value
                answer = replace(answer, value=_versions(contender))
            connection.send(answer)


def _timed(method, arguments, options, contender) -> Answer:
    gc.collect()
    if getattr(method, "__name__", "") == "prepare" and (cuda := _cuda()):
        cuda.empty_cache()  # what one budget needed, the other contenders may need
    _reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    value = method(*arguments, **options)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    apart = getattr(contender, "apart", 0.0)
    return Answer(value, seconds - apart, apart, cpu_seconds, _peak())


def _versions(contender: Any) -> dict[str, str]:
    found = {}
    for package in contender.packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _phrase(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, ImportError | UserError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0]}"[:160]


def _cuda():
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def _reset_peak() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux: the peak then includes loading
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if cuda := _cuda():
        return cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
