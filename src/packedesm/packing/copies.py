"""Copies of records in which one residue each is masked: which there are, and what they cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packedesm.options import LengthPolicy


class Copy(NamedTuple):
    """One masked copy: a window of a record, and the residue of it that is masked."""

    record: int  # its place in the shard
    window: tuple[int, int]  # the residues that the model sees
    masked: int  # the place of the masked residue in the record, from 0


class MaskedCopies:
    """The masked copies of the records of a shard, one for each residue that is embedded.

    Copy c is that of the c-th residue, records back to back: its place is the residue's line in an
    array per residue. Under ``long_sequences: window`` a residue is masked in that one window in
    which it stands furthest from the window's ends, the earlier one of two.

    Parameters
    ----------
    policy
        Which residues are embedded.
    lengths
        int (N,): residues of each record.
    """

    def __init__(self, policy: LengthPolicy, lengths: np.ndarray) -> None:
        self._policy = policy
        self._lengths = np.asarray(lengths, np.int64)
        residues = policy.embedded(self._lengths)
        self._ends = np.cumsum(residues)
        self._begins = self._ends - residues

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, copy: int) -> Copy:
        return self.some(np.array([copy]))[0]

    def some(self, copies: np.ndarray) -> list[Copy]:
        """Return some copies, such as those of a pack, by their numbers, int (C,)."""
        records = self.records(copies)
        places = zip(records.tolist(), (copies - self._begins[records]).tolist(), strict=True)
        lengths = {record: int(self._lengths[record]) for record in np.unique(records).tolist()}
        windows = {record: self._policy.windows(length) for record, length in lengths.items()}
        return [
            Copy(record, _window(windows[record], residue), residue) for record, residue in places
        ]

    def records(self, copies: np.ndarray) -> np.ndarray:
        """Return which record each of some copies is of: int64 (C,), places in the shard."""
        return np.searchsorted(self._ends, copies, side="right")

    def tokens(self) -> np.ndarray:
        """Return the tokens of every copy, those of its window: int32 (C,)."""
        residues = self._policy.embedded(self._lengths)
        return np.repeat(self._policy.window_tokens(self._lengths).astype(np.int32), residues)


def _window(windows: list[tuple[int, int]], residue: int) -> tuple[int, int]:
    """Return the window in which a residue stands furthest from the ends, the first of equals."""
    if len(windows) == 1:
        return windows[0]
    holding = [window for window in windows if window[0] <= residue < window[1]]
    return max(holding, key=lambda window: min(residue - window[0], window[1] - 1 - residue))


def masked_tokens(policy: LengthPolicy, lengths: np.ndarray) -> int:
    """Return the tokens of all masked copies of records of `lengths`, int (N,) in residues."""
    return int((policy.embedded(lengths) * policy.window_tokens(lengths)).sum())
