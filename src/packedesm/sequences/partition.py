"""Which records are embedded, and in which shard: duplicates left out, equal costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from packedesm.options import ShardOptions


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


@dataclass(frozen=True)
class Partition:
    """What is embedded where: int64 `rows` (U,), their tokens and costs (U,), and the cuts.

    And the masked passes (U,) that each record takes besides, and their tokens: 0 where none is
    asked for.
    """

    rows: np.ndarray
    tokens: np.ndarray
    costs: np.ndarray
    bounds: np.ndarray
    masked_passes: np.ndarray
    masked_tokens: np.ndarray

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.bounds) - 1

    def shard_rows(self, shard: int) -> np.ndarray:
        """Return the rows of one shard, ascending."""
        return self.rows[self.bounds[shard] : self.bounds[shard + 1]]


# How many shards there are to be, or what gives that for the cost of all of them, in tokens.
Number = int | Callable[[float], int]


def partition(
    lengths: np.ndarray, rows: np.ndarray, shards: Number, width: int, options: ShardOptions
) -> Partition:
    """Cut `rows`, int64 (U,), of records of `lengths`, int64 (N,) in residues, into shards.

    Where something is asked of masked passes, a record of L residues costs 1 + L passes.
    """
    policy, lengths = options.length, lengths[rows]
    window = policy.window_tokens(lengths)
    passes = policy.embedded(lengths) * options.masked
    costs = (policy.counts(lengths) + passes) * token_cost(window, width)
    number = shards if isinstance(shards, int) else shards(float(costs.sum()))
    return Partition(
        rows, policy.tokens(lengths), costs, cut(costs, number), passes, passes * window
    )


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


def duplicates(first: np.ndarray, deduplicate: bool) -> np.ndarray:
    """Return the row whose vector a row receives, -1 for its own: int64 (N,).

    `first` is what `first_occurrences` gives for the records' sequences.
    """
    repeats = first != np.arange(len(first))
    return np.where(repeats & deduplicate, first, -1)


def _changes(ordered: np.ndarray) -> np.ndarray:
    """Tell for each row and column of `ordered` whether it differs from the row before."""
    changes = np.ones(ordered.shape, dtype=bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    return changes
