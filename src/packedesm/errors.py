"""The exceptions whose text is meant for the user, and how foreign text is shown in a line."""

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

SHOWN = 10
"""How many examples a message names."""

# Controls (they move cursors and end lines), formats (they reorder text), halves of characters
# that UTF-8 cannot write, and two further line ends.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # within words of several scripts, and within emoji


class UserError(Exception):
    """The user's input or options are at fault.

    The message is one line that says what is wrong, where, and what to do. The command prints it
    without a traceback and exits with status 2. Whatever names and values it quotes, no character
    in it ends a line or reaches a terminal as a command: see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Fault(Exception):
    """The machine or another process is at fault, in a way that is understood.

    The message is one line that says what happened, where, and what to do, as `UserError`'s. It
    is printed without a traceback, and the exit status is 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Damaged(Fault):
    """A file is not as another step or attempt has written it."""


@contextmanager
def permissions_told() -> Iterator[None]:
    """Turn what the system forbids in the block into a `UserError` that names the path."""
    try:
        yield
    except PermissionError as error:
        if error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}; change its permissions, or name another"
        ) from error


def is_hidden(character: str) -> bool:
    """Tell whether a character cannot be seen but acts: line ends, terminal controls, and such."""
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def printable(text: str) -> str:
    r"""Return `text` with every hidden character written out, such as ``\x1b`` and ``\n``."""
    if text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if is_hidden(c) else c for c in text)


def quote_path(path: object) -> str:
    """Return a path for a message; one that no file system could hold is cut."""
    text = str(path)
    return text if len(text) <= 255 else quote(text)


def quote(text: str, width: int = 60) -> str:
    """Return `text` for one line of a message: in quotes, escaped, and cut to `width`."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def listed(items: Iterable[str], count: int) -> str:
    """Return the first ten of `count` items, as they are, for one line of a message."""
    shown = ", ".join(islice(items, SHOWN))
    return shown if count <= SHOWN else f"{shown}, …"


def first_line(error: Exception) -> str:
    """Return the first words of a message that may be empty or fill a screen."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 record`` and ``2,000 records``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
