"""Standard output as the place of what a command was asked for, or of what it says besides."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from packedesm.errors import Fault


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Let the block write to standard output, which has taken all of it at its end.

    A reader that leaves early, such as ``head``, ends the block and is no fault.

    Raises
    ------
    Fault
        If it does not take it, as on a full disk, or where it is closed.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # of a file that is read meanwhile
            raise
        if not isinstance(error, BrokenPipeError):
            why = "is closed; send it to a file or a program"
            why = why if error.errno == errno.EBADF else str(error.strerror)
            raise Fault(f"standard output: {why}") from error


def closed() -> TextIO:
    """Return what stands for a stream that is closed: it takes nothing, as a full disk.

    It has the number of that stream, which the next file would get, and with it all that is printed
    past Python.
    """
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")


def answer(text: str) -> None:
    """Write what was asked for to standard output; raises as `standard_output`."""
    with standard_output() as stream:
        print(text, file=stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to a stream, by default standard output, that may be full or closed."""
    with suppress(OSError):
        print(text, file=stream)


def flushed() -> bool:
    """Write out what standard output and error still hold; tell whether they took it."""
    taken = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            taken = False
            # Python would try again at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return taken
