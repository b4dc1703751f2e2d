"""Sequences that a program hands over: cleaned and refused as the records of a FASTA file are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import UserError, quote
from packedesm.sequences.advice import explain
from packedesm.sequences.fasta import Block, clean

_AT_ONCE = 1 << 16  # sequences; what is done to all of a block at once holds them twice
# A set has no order, and of bytes or a text each item would be one letter.
_NO_LISTS = (str, bytes, bytearray, memoryview, set, frozenset)
_MISSING = ("None", "nan", "<NA>", "NaT")  # what Python, NumPy and pandas write for it
_FILE = "give the path of a FASTA file in place of a list"


def item(place: int, name: str) -> str:
    """Return what a message calls an item at a place, from 0, with this id."""
    return f"item {place}" if name == str(place) else f"item {place} ({quote(name)})"


def read_given(sequences: Iterable[Any] | Mapping[Any, Any]) -> Iterator[Block]:
    r"""Yield the items of a program as the records of a file, in blocks.

    What `packedesm.sequences.fasta.read_records` changes is changed and flagged here too. A text
    may have several lines.

    Parameters
    ----------
    sequences
        Texts, whose ids are their places, from ``"0"`` on; or a mapping, or pandas Series, of id to
        text. Ids that are no text become one.

    Raises
    ------
    UserError
        If an item is no text, or one that is no protein sequence, or an id cannot be one. Items
        before it may have been yielded.
    """
    pairs, place = _pairs(sequences), 0
    while some := list(islice(pairs, _AT_ONCE)):
        yield _block(some, place)
        place += len(some)


def _pairs(sequences: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(sequences, _NO_LISTS) or not hasattr(sequences, "__iter__"):
        raise UserError(
            f"sequences: is of type {type(sequences).__name__}; give a list of sequences, a "
            "mapping of id to sequence, or the path of a FASTA file"
        )
    if hasattr(sequences, "columns"):
        raise UserError("sequences: a table has several columns; give the one with the sequences")
    if hasattr(sequences, "items"):
        return ((_id(name), text) for name, text in sequences.items())
    return ((str(place), text) for place, text in enumerate(sequences))


def _id(name: Any) -> str:
    """Return an id as a text, which is empty where it is missing, or is no text but bytes."""
    lost = isinstance(name, bytes) or (not isinstance(name, str) and str(name) in _MISSING)
    return "" if lost else str(name)


def _block(pairs: list[tuple[str, Any]], first: int) -> Block:
    sequences, flags = [], []
    for place, (name, text) in enumerate(pairs, first):
        try:
            sequence, changes = _clean(name, text)
        except ValueError as error:
            raise UserError(f"{item(place, name)}: {error}") from None
        sequences.append(sequence)
        flags.append(changes)
    ids = [name for name, _ in pairs]
    return Block(ids, [""] * len(ids), sequences, flags, np.zeros(len(ids), np.int64))


def _clean(name: str, text: Any) -> tuple[bytes, tuple[str, ...]]:
    """Return the sequence of an item and its flags; ValueError says what is wrong with it."""
    if not name or not _encodable(name):
        raise ValueError("its id is empty or no text; give each sequence an id, or a list")
    if not isinstance(text, str):
        advice = "give each sequence as a text of letters"
        if isinstance(text, (tuple, list)) and len(text) == 2:
            advice = "of pairs of id and sequence make a mapping: dict(pairs)"
        elif isinstance(text, Path):
            advice = _FILE
        elif str(text) in _MISSING:
            advice = "leave out what is missing"
        raise ValueError(f"is no sequence, it is of type {type(text).__name__}; {advice}")
    body = text.encode(errors="surrogatepass").replace(b"\r\n", b"\n")
    if body.lstrip().startswith(b">"):
        raise ValueError(f"is a FASTA record; give the sequence alone, or {_FILE}")
    try:
        return clean(body)
    except ValueError:
        if _is_file(text):
            raise ValueError(f"is the name of a file; {_FILE}") from None
        raise ValueError(explain(b"", body, None)) from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no name of a file: too long, a NUL
        return False


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
