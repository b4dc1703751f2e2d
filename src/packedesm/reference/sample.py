"""Which records of a run are verified, and their sequences as the shards hold them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyfaidx import Fasta

from packedesm.errors import quote
from packedesm.files import expect
from packedesm.options import LengthPolicy, ReferenceOptions
from packedesm.paths import Paths
from packedesm.reference.vectors import Drawn
from packedesm.sequences.arrow import read_columns, to_numpy
from packedesm.sequences.index import read_rows
from packedesm.sequences.partition import token_cost
from packedesm.sequences.summary import read_summary, reading_sharded

logger = logging.getLogger(__name__)


# What `auto` verifies takes at most this share of the operations of the run, but is so many records
# in any case: the shortest, the longest and two between.
_SHARE, _LEAST = 0.1, 4


def choose(lengths: np.ndarray, policy: LengthPolicy, count: int, seed: int) -> np.ndarray:
    """Choose records spread over the lengths, the shortest and the longest among them.

    The records are sorted by length and cut into strata of equal size; one record is drawn from
    each, so that rare lengths are met as the quantiles meet them. Of those of the greatest embedded
    length, which cost the most, the longest is enough, unless they are most of the records.

    Parameters
    ----------
    lengths : ndarray of int, shape (N,)
        Residues of each record.
    policy
        Which of them are embedded.
    count
        How many records to choose; all of them if there are no more.
    seed
        The same seed chooses the same records.

    Returns
    -------
    ndarray of int64, shape (min(count, N),)
        Positions in `lengths`, ascending. A single one is the longest.
    """
    order = np.argsort(lengths, kind="stable")
    if count >= len(order):
        return np.arange(len(order))
    if count < 2:
        return order[len(order) - count :]
    embedded = policy.embedded(lengths[order])  # ascending, too
    below = int(np.searchsorted(embedded, embedded[-1]))
    if below >= max(count - 1, len(order) / 2):
        order = np.append(order[:below], order[-1])
    edges = np.linspace(1, len(order) - 1, count - 1).astype(np.int64)
    drawn = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return np.sort(order[np.concatenate(([0], drawn, [len(order) - 1]))])


def draw(
    lengths: np.ndarray, cost: float, width: int, options: ReferenceOptions
) -> tuple[np.ndarray, Drawn]:
    """Draw the records to verify, and tell of it.

    Under ``auto`` as many as take no more than a tenth of the operations of the run, counted alike:
    one unmasked pass of each record that is drawn, and all passes of the run.

    Parameters
    ----------
    lengths : ndarray of int, shape (N,)
        Residues of each record.
    cost
        Of all that is embedded, in tokens, as ``sharding.json`` has it.
    width
        Of the model.

    Returns
    -------
    ndarray of int64
        Rows, ascending, as `choose` gives them.
    Drawn
        How many.
    """
    policy, most = options.length, min(options.most, len(lengths))

    def drawn(count: int) -> tuple[np.ndarray, float]:
        rows = choose(lengths, policy, count, options.seed)
        passes = policy.counts(lengths[rows])
        costs = passes * token_cost(policy.window_tokens(lengths[rows]), width)
        # The number of shards, whose costs are summed, must not decide.
        return rows, round(float(costs.sum()) / cost, 6)

    count = most
    rows, share = drawn(count)
    while options.sequences == "auto" and share > _SHARE and count > _LEAST:
        count -= 1
        rows, share = drawn(count)
    bound = _SHARE if count < most else None
    return rows, Drawn(count, len(lengths), options.most, share, bound)


# A check before a job takes seconds, with any model.
_FIRST_TOKENS = 2048
_FIRST = 4


class Sample:
    """The records to verify, with their sequences; some may be replaced on the way.

    Parameters
    ----------
    paths, shards
        A sample that was sharded, and the number of its shards.
    options, width
        As `draw` takes them.

    Attributes
    ----------
    drawn
        How many records were drawn, and why so many.
    """

    def __init__(self, paths: Paths, shards: int, options: ReferenceOptions, width: int) -> None:
        self._paths, self._shards, self._policy = paths, shards, options.length
        self._summary = read_summary(paths)
        with reading_sharded(paths, paths.shard_index, summary=self._summary):
            self._lengths = to_numpy(read_columns(paths.shard_index, ["length"])["length"])
        cost = sum(shard["cost"] for shard in self._summary["shards"])
        rows, self.drawn = draw(self._lengths, cost, width, options)
        self._rows = rows.tolist()

    @property
    def masked_tokens(self) -> int:
        """Tokens of all masked passes of the run; 0 if it takes none."""
        return sum(shard["masked_tokens"] for shard in self._summary["shards"])

    def first(self) -> list[int]:
        """Return the rows of the shortest, the longest and two between, of what is quickly done."""
        rows = np.array(self._rows)
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        quick = rows[self._policy.tokens(self._lengths[rows]) <= _FIRST_TOKENS]
        if not len(quick):
            return []
        return sorted(
            {
                int(quick[place])
                for place in np.linspace(0, len(quick) - 1, _FIRST).round().astype(int)
            }
        )

    def without(self, done: Sequence[int]) -> list[int]:
        """Return the rows that are not among those `done`."""
        return sorted({*self._rows} - {*done})

    def replace(self, record: dict[str, Any]) -> dict[str, Any]:
        """Take the longest record shorter than `record` instead; return what is to be told.

        One that is hardly shorter, or cut to the same length, would not fit either, so each step is
        an eighth of what is embedded.
        """
        row, length = record["row"], record["length"]
        embedded = self._policy.embedded(self._lengths)
        shorter = np.flatnonzero(embedded <= embedded[row] * 7 // 8)
        shorter = np.setdiff1d(shorter, self._rows)
        taken = int(shorter[np.argmax(self._lengths[shorter])]) if len(shorter) else None
        if taken is not None:
            self._rows.append(taken)
        logger.warning(
            "row %d (%s), %d residues: its reference does not fit into memory; instead: %s",
            *(row, quote(record["id"]), length),
            "none" if taken is None else f"row {taken}",
        )
        return {"row": row, "id": record["id"], "length": length, "by": taken}

    def read(self, rows: Sequence[int]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the facts of records from the index (row, id, lengths), each with its sequence.

        Raises
        ------
        Damaged
            If a sequence is not that of the index.
        """
        index = self._paths.shard_index
        with reading_sharded(self._paths, index, summary=self._summary):
            facts = list(read_rows(index, np.sort(rows)))
        sources = [
            fact["row"] if fact["duplicate_of"] is None else fact["duplicate_of"] for fact in facts
        ]
        sequences = self._sequences(sources)
        for fact, source in zip(facts, sources, strict=True):
            path, sequence = sequences[source]
            expect(path, hashlib.sha256(sequence.encode()).hexdigest(), fact["sha256"])
            record = {key: fact[key] for key in ("row", "id", "length", "embedded_length")}
            yield record, sequence

    def _sequences(self, rows: Iterable[int]) -> dict[int, tuple[Path, str]]:
        """Read records of the shard FASTAs by row, each with its file.

        Through pyfaidx, not our own reader: what is compared is to be read by other code.
        """
        paths, sequences = self._paths, {}
        held = [n for n in range(self._shards) if paths.shard_fai(n).stat().st_size]
        firsts = [_first_row(paths.shard_fai(shard)) for shard in held]
        wanted = np.array(sorted(set(rows)))
        places = np.searchsorted(firsts, wanted, side="right") - 1
        for place in np.unique(places):
            path, fai = paths.shard_fasta(held[place]), paths.shard_fai(held[place])
            with (
                reading_sharded(paths, fai, summary=self._summary),
                Fasta(str(path), as_raw=True, build_index=False) as fasta,
            ):
                for row in wanted[places == place].tolist():
                    sequences[row] = path, fasta[str(row)][:]
        return sequences


def _first_row(fai: Path) -> int:
    with fai.open(encoding="ascii") as handle:
        return int(handle.readline().split("\t")[0])
