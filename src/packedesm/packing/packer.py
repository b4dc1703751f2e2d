"""Plan packs: which records share one dense batch, as a pure function of their lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 1 << 20  # records planned together; bounds memory and the wait for the first pack


@dataclass(frozen=True)
class Packs:
    """Packs of items; pack ``p`` holds ``items[offsets[p] : offsets[p + 1]]``.

    Attributes
    ----------
    items
        int64 (N,): item indices, pack after pack, in the order in which they were placed.
    offsets
        int64 (P + 1,): where each pack begins in `items`.
    tokens
        int64 (P,): tokens in each pack.
    token_budget
        Most tokens in a pack; only an item that alone exceeds it makes a larger one.
    """

    items: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    token_budget: int

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, pack: int) -> np.ndarray:
        if not -len(self) <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        pack %= len(self)
        return self.items[self.offsets[pack] : self.offsets[pack + 1]]

    @property
    def fill(self) -> float:
        """Tokens over token budget of all packs, at most 1; 0 where there is no pack.

        A pack larger than the budget counts as exactly full, with its own size as its budget.
        """
        room = int(np.maximum(self.tokens, self.token_budget).sum())
        return int(self.tokens.sum()) / room if room else 0.0


class FirstFitDecreasingPacker:
    """Textbook first-fit decreasing bin packing, on millions of lengths.

    Items are taken from the longest to the shortest, equal ones in input order, and each goes
    into the first pack, in order of opening, that still has room for it.
    """

    def __init__(self, token_budget: int) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self.token_budget = int(token_budget)

    def pack(self, lengths: np.ndarray) -> Packs:
        """Pack items of `lengths`: int (N,), in tokens, each at least 1.

        An item longer than the token budget gets a pack of its own. Lengths are small integers,
        so whole groups of equal items are placed at once: first fit fills each open pack with
        ``room // length`` of them in turn, then opens new ones. The work is O(N log N) plus one
        pass over the open packs for each distinct length.

        Raises
        ------
        ValueError
            `lengths` is not a one-dimensional array of integers that are at least 1.
        """
        lengths = _checked(lengths)
        order = np.argsort(-lengths, kind="stable")
        room = np.empty(len(lengths), dtype=np.int64)  # tokens still free in each open pack
        opened = 0
        placed = []  # (pack indices, items each of them took), in order of placing
        for length, count in zip(*_descending_counts(lengths), strict=True):
            fitting = np.flatnonzero(room[:opened] >= length)
            packs, took = fitting, _fill_in_turn(room[fitting] // length, count)
            packs = packs[: len(took)]
            room[packs] -= took * length
            placed.append((packs, took))
            left = count - int(took.sum())
            if left:
                took = _fill_new(left, max(self.token_budget // length, 1))
                packs = np.arange(opened, opened + len(took))
                room[packs] = self.token_budget - took * length
                placed.append((packs, took))
                opened += len(took)
        return self._collect(order, placed, self.token_budget - room[:opened])

    def _collect(self, order: np.ndarray, placed: list, tokens: np.ndarray) -> Packs:
        """Gather the items of each pack; `order` lists all items as they were placed."""
        if not placed:
            return Packs(order, np.zeros(1, dtype=np.int64), tokens, self.token_budget)
        packs = np.concatenate([packs for packs, _ in placed])
        took = np.concatenate([took for _, took in placed])
        pack_of_item = np.repeat(packs, took)
        counts = np.bincount(pack_of_item, minlength=len(tokens))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        items = order[np.argsort(pack_of_item, kind="stable")]
        return Packs(items, offsets, tokens, self.token_budget)


def plan_packs(lengths: np.ndarray, token_budget: int, window: int = WINDOW) -> Packs:
    """Pack consecutive windows of records, each window on its own, and join the packs.

    Parameters
    ----------
    lengths
        int (N,): tokens of each record, at least 1.
    token_budget
        Most tokens in a pack; a longer record gets a pack of its own.
    window
        Records that are planned together, at least 1.

    Raises
    ------
    ValueError
        As `FirstFitDecreasingPacker`, or `window` is less than 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    lengths = _checked(lengths)
    packer = FirstFitDecreasingPacker(token_budget)
    starts = range(0, max(len(lengths), 1), window)
    return _joined([packer.pack(lengths[start : start + window]) for start in starts])


def plan_apart(lengths: np.ndarray, token_budget: int, first: int) -> Packs:
    """Plan the `first` items and all others each by themselves, as `plan_packs`.

    No pack holds items of both kinds, and the packs of the first come first.

    Parameters
    ----------
    lengths
        int (N,): tokens of each item, at least 1.
    token_budget
        As in `plan_packs`.
    first
        How many items are of the first kind, from 0 to N.
    """
    kinds = [kind for kind in (lengths[:first], lengths[first:]) if len(kind)]
    return _joined([plan_packs(kind, token_budget) for kind in kinds or [lengths]])


def _joined(parts: Sequence[Packs]) -> Packs:
    """Join packs of consecutive ranges of items, each numbered from 0."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.items) for part in parts[:-1])]).tolist()
    shifted = list(zip(parts, starts, strict=True))
    return Packs(
        items=np.concatenate([part.items + start for part, start in shifted]),
        offsets=np.concatenate([[0], *(part.offsets[1:] + start for part, start in shifted)]),
        tokens=np.concatenate([part.tokens for part in parts]),
        token_budget=parts[0].token_budget,
    )


def padded_tokens(lengths: np.ndarray, token_budget: int, length_sorted: bool) -> int:
    """Return the tokens that padded batches of the same records would compute.

    A batch takes records in turn while its members times its longest length stay within
    `token_budget`, and each of its members is padded to that length.

    Parameters
    ----------
    lengths
        int (N,): tokens of each record, at least 1.
    token_budget
        Most tokens in a batch, padding included; a longer record is a batch of its own.
    length_sorted
        Take the records from the longest to the shortest instead of in the given order.
    """
    lengths = _checked(lengths)
    if length_sorted:
        lengths = np.sort(lengths)[::-1]
    total = members = longest = 0
    for length in lengths.tolist():
        grown = max(longest, length)
        if members and (members + 1) * grown > token_budget:
            total += members * longest
            members, longest = 1, length
        else:
            members, longest = members + 1, grown
    return total + members * longest


def _checked(lengths: np.ndarray) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError("lengths must be a one-dimensional array of integers")
    if lengths.size and lengths.min() < 1:
        raise ValueError(f"lengths must be at least 1 token, found {lengths.min()}")
    return lengths.astype(np.int64, copy=False)


def _descending_counts(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the distinct lengths, longest first, and how many items have each."""
    distinct, counts = np.unique(lengths, return_counts=True)
    return distinct[::-1].tolist(), counts[::-1].tolist()


def _fill_in_turn(capacities: np.ndarray, count: int) -> np.ndarray:
    """Deal `count` items to packs of these capacities in turn; return what each used pack takes."""
    filled = np.cumsum(capacities)
    used = int(np.searchsorted(filled, count)) + 1
    took = capacities[:used]
    if used <= len(capacities):
        took[-1] -= filled[used - 1] - count
    return took


def _fill_new(count: int, capacity: int) -> np.ndarray:
    """Return how many of `count` items each new pack takes."""
    full, rest = divmod(count, capacity)
    return np.array([capacity] * full + ([rest] if rest else []), dtype=np.int64)
