"""Which items each pack holds, also after packs that are left were planned anew."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from packedesm.packing.packer import Packs, plan_apart

# Packs without trouble until a larger budget is tried again, for the first time: a few seconds on a
# GPU, and each try that fails costs a pack or two.
PATIENCE = 64


@dataclass(frozen=True)
class Replan:
    """Packs in place of others, or for items that get a second pass."""

    token_budget: int
    float32: bool = False  # the packs are for the passes in float32
    packs: tuple[tuple[int, int], ...] = ()  # the numbers whose place they take, from and up to
    records: tuple[int, ...] = ()  # further items

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Replan:
        """Return what `as_json` gave."""
        packs = tuple((first, stop) for first, stop in content["packs"])
        return cls(**{**content, "packs": packs, "records": tuple(content["records"])})


@dataclass(frozen=True)
class _Part:
    first: int  # number of its first pack
    places: np.ndarray | None  # int64, the items that it plans; None: all of the job
    packs: Packs  # their items are positions in `places`
    float32: bool

    def __getitem__(self, number: int) -> np.ndarray:
        items = self.packs[number - self.first]
        return items if self.places is None else self.places[items]


class PackPlan:
    """The packs of a job by number.

    Their items are records and masked copies, see `packedesm.packing.items.Items`; no pack holds
    both. A number means the same items for ever. Packs that take the place of others get new
    numbers, after all that were given, and the numbers of the others are given up. So whatever is
    committed stays true, whenever the job is killed, and an attempt that knows the `Replan` objects
    of those before it has the same plan.

    Parameters
    ----------
    tokens
        int (N + C,): tokens of each item.
    packs
        The packs of all items, as the job begins.
    replans
        What earlier attempts planned anew, in order.
    records
        N: items from there on are masked copies; default: none is.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        packs: Packs,
        replans: Iterable[Replan] = (),
        *,
        records: int | None = None,
    ) -> None:
        self.replans: list[Replan] = []
        self.float32_records: set[int] = set()  # items that get a pass in float32
        self._tokens = tokens
        self._records = len(tokens) if records is None else records
        self._parts = [_Part(0, None, packs, float32=False)]
        self._numbers = set(range(len(packs)))
        for replan in replans:
            self._apply(replan)

    def __contains__(self, number: object) -> bool:
        """Tell whether this number was given and not given up."""
        return number in self._numbers

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the items of a pack: int64 (R,)."""
        return self._part(number)[number]

    def budget(self, number: int) -> int:
        """Return the token budget that a pack was planned with."""
        return self._part(number).packs.token_budget

    def todo(self, done: Collection[int], *, float32: bool) -> list[int]:
        """Return the packs in float32, or the others, that are not `done`, in order."""
        left = sorted(self._numbers.difference(done))
        return [number for number in left if self._part(number).float32 == float32]

    @property
    def token_budget(self) -> int:
        """The token budget of the plan that holds now, float32 aside."""
        return self._budgets()[-1]

    @property
    def patience(self) -> int | None:
        """Packs to embed before a larger budget is tried; None: none is to be tried.

        Each failure doubles them, those of earlier attempts too.
        """
        budgets = self._budgets()
        if budgets[-1] >= budgets[0]:
            return None
        failures = sum(after <= before for before, after in pairwise(budgets))
        return PATIENCE << (failures - 1)

    def larger(self) -> int:
        """Return the larger budget to try next."""
        budgets = self._budgets()
        return min(2 * budgets[-1], budgets[0])

    def replan(
        self,
        packs: Sequence[int],
        token_budget: int,
        *,
        float32: bool = False,
        records: Iterable[int] = (),
    ) -> None:
        """Plan the items of `packs` anew, and `records` with them; each kind by itself.

        Parameters
        ----------
        packs
            Numbers of packs, ascending; they are given up.
        token_budget
            Most tokens in a new pack.
        float32
            The new packs are for the passes in float32.
        records
            Further items.
        """
        further = tuple(sorted(int(place) for place in records))
        self._apply(Replan(token_budget, float32, _ranges(packs), further))

    def _apply(self, replan: Replan) -> None:
        given_up = [number for first, stop in replan.packs for number in range(first, stop)]
        taken = [self[number] for number in given_up]
        places = np.sort(np.concatenate([*taken, np.array(replan.records, np.int64)]))
        first = int(np.searchsorted(places, self._records))
        packs = plan_apart(self._tokens[places], replan.token_budget, first)
        last = self._parts[-1]
        first = last.first + len(last.packs)
        self._parts.append(_Part(first, places, packs, replan.float32))
        self._numbers.difference_update(given_up)
        self._numbers.update(range(first, first + len(packs)))
        self.float32_records.update(replan.records)
        self.replans.append(replan)

    def _part(self, number: int) -> _Part:
        return self._parts[bisect(self._parts, number, key=lambda part: part.first) - 1]

    def _budgets(self) -> list[int]:
        return [part.packs.token_budget for part in self._parts if not part.float32]


def _ranges(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending numbers as ranges, each from and up to."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        first = ranges.pop()[0] if ranges and ranges[-1][1] == number else number
        ranges.append((first, number + 1))
    return tuple(ranges)
