"""Cut the input into shards: contiguous ranges of records with equal estimated cost."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import SHOWN, UserError, listed, plural, printable, quote
from packedesm.files import atomic_path, explained, write_record, write_table
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.sequences.faidx import Faidx, write_faidx
from packedesm.sequences.index import write_index
from packedesm.sequences.partition import (
    Number,
    Partition,
    duplicates,
    first_occurrences,
    partition,
)
from packedesm.sequences.staging import Input, Staging, read_digests, stage_records
from packedesm.sequences.summary import write_summary

logger = logging.getLogger(__name__)

SKIPPED_COLUMNS = ("path", "record", "line", "id", "reason")

_ROW_GROUP = 1 << 18
_COPY_BYTES = 1 << 18
_NO_RESIDUES = "no residues"


def write_shards(
    fastas: list[Path], paths: Paths, options: ShardOptions, *, shards: Number, width: int
) -> dict[str, Any]:
    """Read the input once; write the index of its records and the shards to embed.

    Shard k is `paths.shard_fasta`, a line ``>ROW`` and one line of sequence per record, its faidx
    index, and digests of its sequences; `paths.shard_index` has a line per row, and
    `paths.shard_skipped` one per record without a row; `paths.sharding` is written when all of them
    are there; `paths.sharding_seconds` says how long it took. A row is
    the 0-based position among the records that are kept. A shard may be empty. Memory grows by
    about 150 bytes a record; temporary files need as much room again in `paths.work`.

    Parameters
    ----------
    fastas
        Input files, read in this order.
    paths
        Where the outputs lie.
    options
        How the input is read; ``long_sequences: error`` refuses longer records.
    shards
        How many shards there are, at least 1; or what gives that for their cost.
    width
        Width of the model, for the cost of attention.

    Returns
    -------
    The content of `paths.sharding`, see `packedesm.sequences.summary`.

    Raises
    ------
    UserError
        The input is at fault; nothing is written then.
    """
    start = time.perf_counter()
    with _temporary_folder(paths) as folder:
        staging = stage_records(fastas, folder, options)
        first = first_occurrences(read_digests(staging.sequence_digests))
        repeats = _check_ids(staging, first)
        duplicate_of = duplicates(first, options.deduplicate)
        unique = np.flatnonzero(duplicate_of < 0)
        plan = partition(staging.lengths, unique, shards, width, options)
        writer = _ShardWriter(staging)
        for shard in range(plan.shards):
            writer.write(paths, shard, plan.shard_rows(shard))
        write_index(paths.shard_index, staging.read_groups(_ROW_GROUP), duplicate_of)
        _write_skipped(paths.shard_skipped, staging.inputs)
    summary = write_summary(paths, staging, plan, options, repeats)
    write_record(paths.sharding_seconds, {"seconds": time.perf_counter() - start})
    _say(summary)
    _say_masked(summary, plan)
    return summary


@contextmanager
def _temporary_folder(paths: Paths) -> Iterator[Path]:
    """Make an empty folder in `paths.work`, and remove it and what it alone needed."""
    made = [path for path in (paths.work, paths.root) if not path.exists()]
    folder = paths.work / "staging"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        with explained(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # not empty: something was written
                path.rmdir()


def _check_ids(staging: Staging, first_sequence: np.ndarray) -> int:
    """Refuse ids of different sequences; return how many records repeat an id and its sequence."""
    first_id = first_occurrences(read_digests(staging.id_digests))
    repeated = np.flatnonzero(first_id != np.arange(len(first_id)))
    conflicts = repeated[first_sequence[repeated] != first_sequence[first_id[repeated]]]
    if not len(conflicts):
        return len(repeated)
    shown = conflicts[:SHOWN]
    pairs = list(zip(staging.records(first_id[shown]), staging.records(shown), strict=True))
    examples = [f"{quote(pair[1]['id'])} ({staging.locate(*pair)})" for pair in pairs]
    where = f"{staging.inputs[0].path}: " if len(staging.inputs) == 1 else ""
    advice = "make the ids unique"
    if any(first["description"] != second["description"] for first, second in pairs):
        advice = (
            "an id ends at the first blank of its header: make the ids unique, or set ids to "
            "header, which takes the whole header as the id"
        )
    raise UserError(
        f"{where}{plural(len(conflicts), 'record')} with the id of an earlier, different sequence: "
        f"{listed(examples, len(conflicts))}; {advice}"
    )


def _write_skipped(path: Path, inputs: list[Input]) -> None:
    """Write which records have no row; the head line alone if there are none."""
    rows = [
        {
            "path": printable(str(source.path)),
            "record": skipped.record,
            "line": skipped.line,
            "id": printable(skipped.id),
            "reason": _NO_RESIDUES,
        }
        for source in inputs
        for skipped in source.skipped
    ]
    write_table(path, SKIPPED_COLUMNS, rows)


class _ShardWriter:
    """Copies staged rows into shards, and knows where each row's lines lie."""

    def __init__(self, staging: Staging) -> None:
        self.fasta = staging.fasta
        self.digests = read_digests(staging.sequence_digests)[:, 0]
        self.lengths = staging.lengths
        digits = _decimal_digits(np.arange(len(self.lengths)))
        self.header_bytes = (digits + 2).astype(np.int8)  # ">" and line end
        self.ends = np.cumsum(self._record_bytes(slice(None)))

    def _record_bytes(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.header_bytes[rows] + self.lengths[rows] + 1

    def write(self, paths: Paths, shard: int, rows: np.ndarray) -> None:
        """Write FASTA and faidx index of one shard: the ascending int64 `rows`."""
        with atomic_path(paths.shard_fasta(shard)) as path:
            self._copy(rows, path)
        with atomic_path(paths.shard_fai(shard)) as path:
            self._write_fai(rows, path)
        with atomic_path(paths.shard_digests(shard)) as path:
            self.digests[rows].tofile(path)

    def _copy(self, rows: np.ndarray, path: Path) -> None:
        # Neighbouring rows are one run of bytes; without duplicates a shard is a single run.
        first_rows = rows[np.diff(rows, prepend=-2) != 1]
        last_rows = rows[np.diff(rows, append=-2) != 1]
        starts = (self.ends[first_rows] - self._record_bytes(first_rows)).tolist()
        stops = self.ends[last_rows].tolist()
        # Large buffers: where duplicates are left out, there are many short runs close together.
        with (
            self.fasta.open("rb", buffering=_COPY_BYTES) as source,
            path.open("wb", buffering=_COPY_BYTES) as target,
        ):
            for start, stop in zip(starts, stops, strict=True):
                source.seek(start)
                for position in range(start, stop, _COPY_BYTES):
                    target.write(source.read(min(_COPY_BYTES, stop - position)))

    def _write_fai(self, rows: np.ndarray, path: Path) -> None:
        lengths, record_bytes = self.lengths[rows], self._record_bytes(rows)
        offsets = np.cumsum(record_bytes) - record_bytes + self.header_bytes[rows]
        write_faidx(path, Faidx(rows, lengths, offsets))


def _say(summary: dict[str, Any]) -> None:
    logger.info(
        "%s, %d to embed, in %s",
        plural(summary["records"], "record"),
        summary["unique"],
        plural(len(summary["shards"]), "shard"),
    )
    for warning in summary["warnings"]:
        logger.warning("%s", warning)


def _say_masked(summary: dict[str, Any], plan: Partition) -> None:
    """Tell how much masked passes will cost; how long they take here, each job tells."""
    passes = int(plan.masked_passes.sum())
    if passes:
        other = float((plan.costs / (plan.masked_passes + 1)).sum())
        logger.info(
            "%s to embed: %s masked passes, one for each residue, about %.0f times the work of "
            "one pass over each",
            *(plural(summary["unique"], "protein"), f"{passes:,}", plan.costs.sum() / other - 1),
        )


def _decimal_digits(numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(10 ** np.arange(1, 19), numbers, side="right") + 1
