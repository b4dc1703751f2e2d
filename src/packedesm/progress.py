"""Tell how far a long job is: a bar on a terminal or in a notebook, lines in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

# One process draws. tqdm's own lock is one between processes, which would outlive a killed one.
tqdm.set_lock(threading.RLock())

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def telling(listener: Callable[[int], None]) -> Iterator[None]:
    """Let progress that begins in the block be told to `listener`, and neither drawn nor logged.

    It is called with all that is done so far: at the beginning, with what was done before, and
    whenever there is more, in the thread that counts it.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """Context manager that counts what is done.

    Parameters
    ----------
    doing
        What the job does, such as ``embedding``.
    total
        How much there is to do; None if nobody knows.
    unit
        What is counted, such as ``residues``.
    interval
        Seconds between lines in the log.
    before
        How much was done before, and not by this process.
    delay
        Seconds until a bar appears: what is done sooner shows none.
    """

    def __init__(
        self,
        doing: str,
        total: int | None,
        unit: str,
        interval: float = 5.0,
        before: int = 0,
        delay: float = 0.0,
    ) -> None:
        self._doing = doing
        self._unit = unit
        self._interval = interval
        self._last = time.monotonic()
        self._before = before
        self._listener = _listener.get()
        drawn: type[tqdm] = _Bar
        file: _Terminal | _Nowhere = _Nowhere()
        if self._listener is None and in_notebook():
            drawn, file = _notebook_bar(), _Terminal()
        elif self._listener is None and sys.stderr.isatty():
            file = _Terminal()
        self._bar = drawn(
            desc=doing,
            initial=before,
            total=total,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            delay=delay,
            file=file,
        )
        if self._listener is not None:
            self._listener(before)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.close()
        if self._listener is None:
            self._log()

    def add(self, amount: int) -> None:
        """Count `amount` more as done."""
        self._bar.update(amount)
        if self._listener is not None:
            self._listener(int(self._bar.n))
        elif time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self._log()

    def found(self, amount: int) -> None:
        """Count `amount` as done before, or where it is below 0, as lost: not as work of now."""
        self._before += amount
        for name in ("n", "initial", "last_print_n"):  # the bar's rate is of its own work too
            setattr(self._bar, name, getattr(self._bar, name) + amount)

    def _log(self) -> None:
        state = self._bar.format_dict
        done, total, seconds = state["n"], state["total"], state["elapsed"]
        rate = (done - self._before) / seconds if seconds > 0 else 0.0
        if total is None:
            logger.info("%s: %d %s, %.0f %s/s", self._doing, done, self._unit, rate, self._unit)
            return
        left = tqdm.format_interval((total - done) / rate) if rate > 0 else "?"
        logger.info(
            "%s: %d of %d %s (%.1f%%), %.0f %s/s, %s left",
            *(self._doing, done, total, self._unit, 100 * done / max(total, 1), rate),
            *(self._unit, left),
        )


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _notebook_bar() -> type[tqdm]:
    """Return a bar of Jupyter's own widgets; without the package ipywidgets, one of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which asks for that package: a bar of text is fine
        from tqdm.auto import tqdm as drawn
    return drawn


class _Bar(tqdm):
    """A bar that says nothing of itself where a signal ends the process while it is made."""

    def __del__(self) -> None:
        with suppress(AttributeError):
            super().__del__()


class _Terminal:
    """Standard error; that the terminal is gone is no reason to stop."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()


class _Nowhere:
    """Where tqdm draws its bar if nobody watches; `disable` would stop it from counting."""

    def write(self, _text: str) -> None:
        pass

    def flush(self) -> None:
        pass
