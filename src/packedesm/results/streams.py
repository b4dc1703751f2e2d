"""Standard output as the place of what a command was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from packedesm.errors import Fault


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Let the block write to standard output, which has taken all of it at its end.

    A reader that leaves early, such as ``head``, ends the block and is no fault.

    Raises
    ------
    Fault
        If it does not take it, as on a full disk.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # of a file that is read meanwhile
            raise
        if not isinstance(error, BrokenPipeError):
            raise Fault(f"standard output: {error.strerror}") from error


def answer(text: str) -> None:
    """Write what was asked for to standard output; raises as `standard_output`."""
    with standard_output() as stream:
        print(text, file=stream)
