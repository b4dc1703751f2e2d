"""Where the sequences of a call are read from: a file, or what a program holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from packedesm.errors import UserError, quote

Sequences = Iterable[str] | Mapping[Any, str] | str | Path


def source_of(sequences: Sequences) -> Path | Iterable[str] | Mapping[Any, str]:
    """Return the path of a FASTA file, which a text is taken for; or sequences as they are.

    Raises
    ------
    UserError
        If a text is no path of a file; most likely it is a sequence.
    """
    if isinstance(sequences, Path):
        return sequences.expanduser()
    if not isinstance(sequences, str):
        return sequences
    if not sequences.strip():
        raise UserError(
            "sequences: the text is empty; give a list of sequences, a mapping of id to sequence, "
            "or the path of a FASTA file"
        )
    if sequences.lstrip().startswith(">"):
        raise UserError(
            "sequences: the text is FASTA itself, and one text is the path of a file; give a "
            "mapping of id to sequence, or write it to a file"
        )
    with suppress(OSError, ValueError, RuntimeError):  # no path: too long, a NUL, no such home
        path = Path(sequences).expanduser()
        if path.exists():
            return path
    raise UserError(
        f"{quote(sequences)}: one text is the path of a FASTA file, and there is none; give a "
        "single sequence as a list of one"
    )
