"""Cut the input into shards: contiguous ranges of records with equal estimated cost."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from packedesm.errors import Fault, UserError, quote
from packedesm.files import atomic_path, file_digest, read_json, write_json
from packedesm.paths import Layout
from packedesm.sequences.staging import SCHEMA, Spool, read_digests, write_spool
from packedesm.sequences.windows import check_window, record_tokens, segment_counts

logger = logging.getLogger(__name__)

_ROW_GROUP = 1 << 18
_COPY_BYTES = 1 << 18
_SHOWN = 10  # examples in a message
_WARNINGS = {
    "truncated": "are longer than {max_length} residues and are cut there",
    "stop_replaced": "hold a stop (*) inside the sequence, which is embedded as X",
    "j_replaced": "hold J (leucine or isoleucine), which ESM-2 does not know, embedded as X",
    "header_latin1": "have a header that is not UTF-8, read as Latin-1",
}


def token_cost(tokens: np.ndarray, width: int) -> np.ndarray:
    """Return the relative cost of sequences: ``T + T**2 / (6 * width)``, float64 (N,).

    Per layer of width d, the matrix products with weights (q, k, v, output and a feed-forward of
    4 d: 12 d**2 weights) take 24 d**2 T FLOP for T tokens, and attention's two products (scores
    and weighted values, 2 d T**2 each) take 4 d T**2. The cost is their sum in units of 24 d**2:
    tokens, with attention's quadratic part on top.

    Parameters
    ----------
    tokens
        int (N,): tokens of each sequence that attention sees as one.
    width
        Width of the model, d.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    return tokens + tokens**2 / (6 * width)


def write_shards(
    fastas: list[Path],
    layout: Layout,
    shards: int,
    *,
    width: int,
    max_length: int,
    long_sequences: str,
    window_overlap: int,
    empty_sequences: str,
    deduplicate: bool,
) -> dict[str, Any]:
    """Read the input once; write the index of its records and the shards to embed.

    Shard k is `layout.shard_fasta`, a line ``>ROW`` and one line of sequence per record, and its
    faidx index; `layout.shard_index` has a line per row; `layout.sharding` is written last. A row
    is the 0-based position among the records that are kept. A shard may be empty. Memory grows
    by about 150 bytes a record; temporary files need as much room again in `layout.work`.

    Parameters
    ----------
    fastas
        Input files, read in this order.
    layout, shards
        Where the outputs lie, and how many shards there are, at least 1.
    width
        Width of the model, for the cost of attention.
    max_length, long_sequences, window_overlap
        As in `segments.segments`, in residues; ``error`` refuses longer records.
    empty_sequences
        ``error``, or ``skip``: records without residues get no row and are counted.
    deduplicate
        Put only the first of identical sequences into a shard.

    Returns
    -------
    The content of `layout.sharding`: counts, flags, inputs, shards, warnings, and the digests
    of the files, for `check_written`. ``unique`` counts records in shards; embedded residues are
    those left after truncation.

    Raises
    ------
    UserError
        The input or the options are at fault; nothing is published then.
    """
    limits = max_length, long_sequences, window_overlap
    check_window(*limits)
    with _temporary_folder(layout) as folder:
        spool = write_spool(fastas, folder, max_length, long_sequences, empty_sequences)
        first = first_occurrences(read_digests(spool.sequence_digests))
        repeats = _check_ids(spool, first)
        duplicate_of = _duplicate_of(first, deduplicate)
        plan = _plan(spool.lengths, np.flatnonzero(duplicate_of < 0), shards, width, limits)
        _write_fastas(spool, plan, layout, shards)
        _write_index(spool, layout.shard_index, duplicate_of)
    summary = _summarise(spool, plan, limits, _warnings(spool, repeats, max_length))
    written = [layout.shard_index]
    for shard in range(shards):
        written += [layout.shard_fasta(shard), layout.shard_fai(shard)]
    summary["sha256"] = {_name(layout, path): file_digest(path) for path in written}
    write_json(layout.sharding, summary)
    _say(summary)
    return summary


def cut(costs: np.ndarray, shards: int) -> np.ndarray:
    """Return where to cut records into contiguous shards of nearly equal cost.

    A record belongs to the shard in which the middle of its cost lies, so each cut is off by at
    most half the cost of one record.

    Parameters
    ----------
    costs
        float (N,), each above 0.
    shards
        Number of shards; where it exceeds N some are empty.

    Returns
    -------
    int64 (shards + 1,), from 0 to N: shard k is records ``bounds[k]`` to ``bounds[k + 1] - 1``.
    """
    ends = np.cumsum(costs)
    targets = ends[-1] * np.arange(1, shards) / shards
    inner = np.searchsorted(ends - costs / 2, targets)
    return np.concatenate([[0], inner, [len(costs)]]).astype(np.int64)


def first_occurrences(digests: np.ndarray) -> np.ndarray:
    """Return for each row of `digests`, (N, 2), the first row that equals it: int64 (N,)."""
    order = np.argsort(digests[:, 0])
    changes = _changes(digests[order])
    if (changes[:, 0] != changes.any(axis=1)).any():
        # Half a digest does not decide, which never happens by chance.
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        changes = _changes(digests[order])
    starts = np.flatnonzero(changes.any(axis=1))
    firsts = np.minimum.reduceat(order, starts)
    result = np.empty(len(order), dtype=np.int64)
    result[order] = np.repeat(firsts, np.diff(starts, append=len(order)))
    return result


def _changes(ordered: np.ndarray) -> np.ndarray:
    """Tell for each row and column of `ordered` whether it differs from the row before."""
    changes = np.ones(ordered.shape, dtype=bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    return changes


def _duplicate_of(first: np.ndarray, deduplicate: bool) -> np.ndarray:
    """Return the row whose vector a row receives, -1 for its own: int64 (N,)."""
    repeats = first != np.arange(len(first))
    return np.where(repeats & deduplicate, first, -1)


@dataclass(frozen=True)
class _Plan:
    """What is embedded where: int64 `rows` (U,), their tokens and costs (U,), and the cuts."""

    rows: np.ndarray
    tokens: np.ndarray
    costs: np.ndarray
    bounds: np.ndarray

    def shard_rows(self, shard: int) -> np.ndarray:
        return self.rows[self.bounds[shard] : self.bounds[shard + 1]]


def _plan(
    lengths: np.ndarray, rows: np.ndarray, shards: int, width: int, limits: tuple[int, str, int]
) -> _Plan:
    tokens = record_tokens(lengths[rows], *limits)
    counts = segment_counts(lengths[rows], *limits)
    costs = counts * token_cost(tokens / counts, width)
    return _Plan(rows, tokens, costs, cut(costs, shards))


@contextmanager
def _temporary_folder(layout: Layout) -> Iterator[Path]:
    """Make an empty folder in `layout.work`, and remove it and what it alone needed."""
    made = [path for path in (layout.work, layout.root) if not path.exists()]
    folder = layout.work / "spool"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # not empty: something was published
                path.rmdir()


def _check_ids(spool: Spool, first_sequence: np.ndarray) -> int:
    """Refuse ids of different sequences; return how many records repeat an id and its sequence."""
    first_id = first_occurrences(read_digests(spool.id_digests))
    repeated = np.flatnonzero(first_id != np.arange(len(first_id)))
    conflicts = repeated[first_sequence[repeated] != first_sequence[first_id[repeated]]]
    if not len(conflicts):
        return len(repeated)
    ids = spool.read_table()["id"]
    examples = ", ".join(
        f"{quote(ids[row].as_py())} ({spool.locate(int(first_id[row]), row)})"
        for row in conflicts[:_SHOWN].tolist()
    )
    where = f"{spool.inputs[0].path}: " if len(spool.inputs) == 1 else ""
    raise UserError(
        f"{where}{len(conflicts)} records carry the id of an earlier, different sequence: "
        f"{examples}"
        f"{', …' if len(conflicts) > _SHOWN else ''}; make the ids unique"
    )


def _write_fastas(spool: Spool, plan: _Plan, layout: Layout, shards: int) -> None:
    writer = _ShardWriter(spool)
    for shard in range(shards):
        writer.write(layout, shard, plan.shard_rows(shard))


class _ShardWriter:
    """Copies rows of the spool into shards, and knows where each row's lines lie."""

    def __init__(self, spool: Spool) -> None:
        self.fasta = spool.fasta
        self.lengths = spool.lengths
        digits = _decimal_digits(np.arange(len(self.lengths)))
        self.header_bytes = (digits + 2).astype(np.int8)  # ">" and line end
        self.ends = np.cumsum(self._record_bytes(slice(None)))

    def _record_bytes(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.header_bytes[rows] + self.lengths[rows] + 1

    def write(self, layout: Layout, shard: int, rows: np.ndarray) -> None:
        """Write FASTA and faidx index of one shard: the ascending int64 `rows` of the spool."""
        with atomic_path(layout.shard_fasta(shard)) as path:
            self._copy(rows, path)
        with atomic_path(layout.shard_fai(shard)) as path:
            self._write_fai(rows, path)

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
        columns = [rows, lengths, offsets, lengths, lengths + 1]
        names = ["name", "length", "offset", "linebases", "linewidth"]
        options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        pa.csv.write_csv(pa.table(columns, names=names), path, options)


def _write_index(spool: Spool, path: Path, duplicate_of: np.ndarray) -> None:
    """Write the index table; `duplicate_of` is int64 (N,) with -1 for no duplicate."""
    place = SCHEMA.get_field_index("flags")
    schema = SCHEMA.insert(place, pa.field("duplicate_of", pa.int64()))
    with (
        atomic_path(path) as temporary,
        pa.parquet.ParquetWriter(
            temporary, schema, compression="zstd", use_dictionary=["flags"]
        ) as writer,
    ):
        row = 0
        for table in spool.read_groups(_ROW_GROUP):
            duplicates = duplicate_of[row : row + len(table)]
            column = pa.array(duplicates, mask=duplicates < 0)
            writer.write_table(table.add_column(place, schema.field(place), column))
            row += len(table)


def check_written(layout: Layout, path: Path) -> str:
    """Return the digest of one of the files that `write_shards` wrote.

    Raises
    ------
    Fault
        If the file is not as it was written.
    """
    digest = file_digest(path)
    if digest != read_json(layout.sharding)["sha256"][_name(layout, path)]:
        raise Fault(f"{path}: is not as it was written, it is damaged; delete it and run again")
    return digest


def _name(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.work).as_posix()


def _summarise(
    spool: Spool, plan: _Plan, limits: tuple[int, str, int], warnings: list[str]
) -> dict[str, Any]:
    max_length, long_sequences, window_overlap = limits
    embedded = spool.lengths
    if long_sequences == "truncate":
        embedded = np.minimum(embedded, max_length)
    residues = embedded[plan.rows]
    return {
        "records": len(spool.lengths),
        "unique": len(plan.rows),
        "skipped_empty": sum(len(source.skipped) for source in spool.inputs),
        "residues": int(spool.lengths.sum()),
        "embedded_residues": int(embedded.sum()),
        "unique_residues": int(residues.sum()),
        "flags": spool.flags,
        "inputs": [
            {"path": str(source.path), "bytes": source.bytes, "records": source.records}
            for source in spool.inputs
        ],
        "shards": _summarise_shards(plan, residues),
        "max_length": max_length,
        "long_sequences": long_sequences,
        "window_overlap": window_overlap,
        "warnings": warnings,
    }


def _summarise_shards(plan: _Plan, residues: np.ndarray) -> list[dict[str, Any]]:
    """Return what each shard holds; `residues` are those embedded of each record, int64 (U,)."""
    shards = [slice(start, stop) for start, stop in pairwise(plan.bounds.tolist())]
    return [
        {
            "records": part.stop - part.start,
            "residues": int(residues[part].sum()),
            "tokens": int(plan.tokens[part].sum()),
            "cost": float(plan.costs[part].sum()),
        }
        for part in shards
    ]


def _say(summary: dict[str, Any]) -> None:
    logger.info(
        "%d records, %d of them embedded, the others repeat a sequence; shards: %d",
        *(summary["records"], summary["unique"], len(summary["shards"])),
    )
    for warning in summary["warnings"]:
        logger.warning("%s", warning)


def _warnings(spool: Spool, repeats: int, max_length: int) -> list[str]:
    """Return one line for each way in which rows differ from what the input says."""
    total = len(spool.lengths)
    warnings = [
        f"{spool.flags[flag]} of {total} records {text.format(max_length=max_length)} (flag {flag})"
        for flag, text in _WARNINGS.items()
        if flag in spool.flags
    ]
    if repeats:
        warnings.append(
            f"{repeats} of {total} records repeat the id and sequence of an earlier one"
        )
    skipped = sum(len(source.skipped) for source in spool.inputs)
    if skipped:
        warnings.append(f"{skipped} records without residues were skipped and have no row")
    return warnings


def _decimal_digits(numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(10 ** np.arange(1, 19), numbers, side="right") + 1
