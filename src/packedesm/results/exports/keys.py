"""What records are called in a file that cannot hold every id."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""All characters that `str.split` splits at."""

_LONGEST_PATH = 1000  # bytes, of 4,096 that Linux takes, 1,024 that macOS does


@dataclass(frozen=True)
class Rule:
    """Which texts can be keys in a format.

    Parameters
    ----------
    forbidden
        Characters that none may hold.
    names
        Texts that may be none.
    longest
        Most bytes of one, in UTF-8; None for as many as there are.
    """

    forbidden: str = ""
    names: tuple[str, ...] = ("",)
    longest: int | None = None

    def admits(self, text: str) -> bool:
        """Tell whether a text can be a key."""
        short = self.longest is None or len(text.encode()) <= self.longest
        return bool(text) and short and text not in self.names and not self._found(text)

    def escaped(self, text: str) -> str:
        """Return the text as it can be a key: what may not be in it as in web addresses, ``%2F``.

        A text that is too long is cut and ends with the beginning of its SHA-256.
        """
        whole = text in self.names or not text
        shown = "".join(_percent(c) if whole or c in self.forbidden else c for c in text) or "%"
        if self.longest is not None and len(shown.encode()) > self.longest:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            room = self.longest - len(digest) - 1
            shown = f"{shown.encode()[:room].decode(errors='ignore')}~{digest}"
        return shown

    def alike(self, text: str) -> str:
        """Return what is the same of two texts that cannot both be keys."""
        return text

    def _found(self, text: str) -> bool:
        return any(character in text for character in self.forbidden)


@dataclass(frozen=True)
class PathRule(Rule):
    """Which texts can be paths of files below a folder: ``a/b`` is a file in the folder ``a``.

    No part may be empty, lead out of the folder, be longer than file systems take, or end as the
    files do where it is a folder. Paths that differ in upper and lower case alone are one path on
    many systems, wherever the folder is copied to, and so are two ways to write an accent.
    """

    forbidden: str = "/\0"
    names: tuple[str, ...] = (".", "..")
    longest: int | None = 240
    suffix: str = ".pt"  # of the files

    def admits(self, text: str) -> bool:
        """Tell whether a text can be such a path."""
        parts = text.split("/")
        folders = (part.lower() for part in parts[:-1])
        return (
            len(text.encode()) <= _LONGEST_PATH
            and all(super(PathRule, self).admits(part) for part in parts)
            and not any(folder.endswith(self.suffix) for folder in folders)
        )

    def alike(self, text: str) -> str:
        """Return the path in lower case, in Unicode's canonical form."""
        return unicodedata.normalize("NFC", text).casefold()


def unique_keys(ids: Sequence[str], rule: Rule) -> tuple[list[str], list[int]]:
    """Return a key for every record, each once, and which rows got another than their id.

    An id that can be a key is the key of the first record that has it. Every other record gets
    `Rule.escaped` of its id, or where that is taken, this with ``~2``, ``~3`` and so on at its end.

    Parameters
    ----------
    ids
        What records would be called; N of them.
    rule
        What can be a key.

    Returns
    -------
    keys, replaced
        N texts, and the ascending rows whose key is not their id.
    """
    keys = list(ids)
    taken: set[str] = set()
    replaced = []
    for row, text in enumerate(ids):
        if rule.alike(text) in taken or not rule.admits(text):
            replaced.append(row)
        else:
            taken.add(rule.alike(text))
    counts: dict[str, int] = {}
    for row in replaced:
        escaped = rule.escaped(ids[row])
        key = escaped
        while rule.alike(key) in taken or not rule.admits(key):
            counts[escaped] = counts.get(escaped, 1) + 1
            key = _numbered(escaped, counts[escaped], rule)
        taken.add(rule.alike(key))
        keys[row] = key
    return keys, replaced


def accession(record_id: str) -> str:
    """Return the accession in a header of UniProt's, ``P12345`` of ``sp|P12345|NAME``.

    As ProtSpace 4.8 (``data/loaders/h5.py``) recognises it: else of an id with bars what stands
    between the first two, and any other id as it is. Of an isoform, ``P12345-2``, all of it.
    """
    parts = record_id.split("|")
    return (parts[1] or record_id) if len(parts) > 1 else record_id


def biotrainer_hash(sequence: bytes) -> str:
    """Return what biotrainer calls a protein: the SHA-256, in hexadecimal, of ``SEQUENCE_LENGTH``.

    As ``biotrainer/utilities/hashing.py`` of version 1.4 defines it.
    """
    return hashlib.sha256(b"%b_%d" % (sequence, len(sequence))).hexdigest()


def first_rows(keys: Iterable[str]) -> list[int]:
    """Return the rows at which a key stands for the first time."""
    seen: set[str] = set()
    return [row for row, key in enumerate(keys) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]


def _numbered(text: str, number: int, rule: Rule) -> str:
    end = f"~{number}"
    if rule.longest is not None:
        text = text.encode()[: rule.longest - len(end)].decode(errors="ignore")
    return text + end


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
