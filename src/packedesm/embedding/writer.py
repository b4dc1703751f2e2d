"""A thread that writes what is finished while the device goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

# What may wait for the disk: a commit takes up to seconds there. It holds minutes of mean vectors
# of the fastest GPU; residue vectors come in hundreds of megabytes a second, for which the disk is
# the brake in any case. Small beside the 3 GB that a job asks for besides its weights.
WAITING_BYTES = 256 << 20


class Writer:
    """Context manager: run functions in a thread of its own, in the order in which they come.

    When the block ends, however it ends, all that was put is run before. After the first that
    fails none is run any more.

    Parameters
    ----------
    limit
        Most bytes that may wait; one function may always, whatever its size.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = WAITING_BYTES if limit is None else limit
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0
        self._failed = False

    def __enter__(self) -> Writer:
        self._thread = ThreadPoolExecutor(1, "writer")
        # It runs before there is anything to lose: a signal while it starts has it forgotten.
        self._thread.submit(lambda: None).result()
        return self

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        try:
            self._until_idle()
        finally:
            self._thread.shutdown()
        if kind is None:
            while self._waiting:
                self._take_oldest()

    def put(self, write: Callable[[], None], size: int) -> None:
        """Have `write` run, which holds `size` bytes; wait while there is no room for them.

        Raises
        ------
        Exception
            What an earlier function raised.
        """
        while self._waiting and (self._waiting[0][0].done() or self._bytes + size > self._limit):
            self._take_oldest()
        self._waiting.append((self._thread.submit(self._run, write), size))
        self._bytes += size

    def _until_idle(self) -> None:
        # Signals raise here too. Of a thread whose `join` they interrupt Python believes that it
        # has ended, so that is not what is waited for.
        last, interruption = self._thread.submit(lambda: None), None
        while not last.done():
            try:
                wait([last])
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption

    def _take_oldest(self) -> None:
        future, size = self._waiting[0]
        future.result()
        self._waiting.popleft()
        self._bytes -= size

    def _run(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except BaseException:
            self._failed = True
            raise
