"""Stop in order when the scheduler or the user says so."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def stopping_on_signals() -> Iterator[Callable[[], None]]:
    """End the block with SystemExit, status 128 + signal, on SIGTERM, SIGINT or SIGHUP.

    The exception comes out of whatever the main thread is doing, so that a forward pass of minutes
    is not waited for; the blocks around it tidy up, and a further signal does not disturb them.
    A signal that was ignored before stays ignored. Outside the main thread, where Python delivers
    no signal, nothing is changed.

    Yields a function to call now and then, which raises if a signal came and its exception was
    lost: Python drops one that is raised while an object is being finalised.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise SystemExit(128 + received[0])

    def stop(number: int, _frame: object) -> None:
        if not received:
            received.append(number)
            logger.warning("%s: stopping; what is finished is kept", signal.Signals(number).name)
            check()

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
