"""The sequences of finished results, which hold none: read again where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from packedesm.errors import UserError
from packedesm.paths import STANDARD_INPUT, Paths
from packedesm.results.index_file import index_columns
from packedesm.results.reader import Results
from packedesm.sequences.fasta import read_blocks


def fasta_files(results: Results, fasta: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the FASTA files of results: those that are given, or those that were read.

    Raises
    ------
    UserError
        If none are given, and the results do not tell where they lie, or they lie there no more.
    """
    if fasta:
        return tuple(fasta)
    request = results.manifest.get("request") or {}
    found = tuple(Path(source["path"]) for source in request.get("inputs", []))
    gone = [path for path in found if path == STANDARD_INPUT or not path.exists()]
    if not found or gone:
        why = f"{gone[0]} is not there" if gone else "the results do not tell where they were read"
        raise UserError(
            f"{results.path}: this export needs the sequences, and {why}; give their FASTA with "
            "--fasta"
        )
    return found


def sequences(results: Results, fasta: Sequence[Path] = ()) -> Iterator[bytes]:
    """Yield the sequence of every record in order, as it was embedded before it was cut.

    Raises
    ------
    UserError
        As `fasta_files`; or the files hold others than were embedded, by the digests of the index.
    """
    files = fasta_files(results, fasta)
    names = ", ".join(map(str, files))
    config = results.manifest["config"]
    blocks = chain.from_iterable(
        read_blocks(path, ids=config.get("ids", "first_word")) for path in files
    )
    # Records without residues were skipped: an array has no line of theirs.
    found = (sequence for block in blocks for sequence in block.sequences if sequence)
    row = 0
    for row, digest in enumerate(_digests(Paths(results.path).index), 1):
        sequence = next(found, None)
        if sequence is None or hashlib.sha256(sequence).hexdigest() != digest:
            raise _others(names, f"record {row} is another one, or is missing")
        yield sequence
    if next(found, None) is not None:
        raise _others(names, f"there are more than {row} records")


def _others(names: str, what: str) -> UserError:
    return UserError(
        f"{names}: not what was embedded: {what}; give the very FASTA of the run with --fasta"
    )


def _digests(index: Path) -> Iterator[str]:
    for chunk in index_columns(index, ["sha256"])["sha256"].chunks:
        yield from chunk.to_pylist()
