"""What a job passes through the model: the records of its shard, and masked copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from packedesm.options import SPECIAL_TOKENS
from packedesm.packing.copies import MaskedCopies, masked_tokens
from packedesm.packing.dataset import Protein, SequenceDataset
from packedesm.packing.packer import Packs, plan_apart


class Items(Dataset):
    """The items of a job: the records 0 to N - 1 of its shard, and behind them masked copies.

    Item N + c is copy c of `packedesm.packing.copies.MaskedCopies`. Items are read in any order;
    those that one worker reads for one pack read each record once.

    Parameters
    ----------
    dataset
        The records of the shard.
    unmasked, masked
        Whether the records themselves go through the model, and whether their copies do.

    Attributes
    ----------
    records : int
        N, of the shard, whether they go through the model themselves or not.
    """

    def __init__(
        self, dataset: SequenceDataset, *, unmasked: bool = True, masked: bool = False
    ) -> None:
        self.dataset = dataset
        self.records = len(dataset)
        self.unmasked = unmasked
        self.copies = MaskedCopies(dataset.policy, dataset.lengths) if masked else None

    @property
    def fasta(self) -> Path:
        """The file that is read."""
        return self.dataset.fasta

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of each item: int (N + C,)."""
        if self.copies is None:
            return self.dataset.tokens
        records = self.dataset.tokens.astype(np.int32)
        return np.concatenate([records, self.copies.tokens()])

    def plan(self, token_budget: int) -> Packs:
        """Plan the packs of all items that go through the model: records first, copies apart."""
        if self.unmasked:
            return plan_apart(self.tokens, token_budget, self.records)
        packs = plan_apart(self.tokens[self.records :], token_budget, 0)
        packs.items[:] += self.records
        return packs

    def records_of(self, items: np.ndarray) -> np.ndarray:
        """Return the record that each of some items is, or is a copy of: int64 (R,)."""
        items = np.asarray(items, np.int64)
        if self.copies is None:
            return items
        records = self.copies.records(np.maximum(items - self.records, 0))
        return np.where(items < self.records, items, records)

    def counts(self) -> dict[str, int]:
        """Return residues and tokens of the records that go through the model, and masked passes.

        By the names of `packedesm.embedding.record.JobFacts`.
        """
        dataset, masked = self.dataset, self.copies is not None
        return {
            "residues": int(dataset.embedded_lengths.sum()) if self.unmasked else 0,
            "tokens": int(dataset.tokens.sum()) if self.unmasked else 0,
            "masked_passes": len(self.copies or ()),
            "masked_tokens": masked_tokens(dataset.policy, dataset.lengths) if masked else 0,
        }

    @property
    def passed(self) -> int:
        """Residues that go through the model: those of the records, and all of every copy."""
        counts = self.counts()
        copies = counts["masked_tokens"] - SPECIAL_TOKENS * counts["masked_passes"]
        return counts["residues"] + copies

    def __len__(self) -> int:
        return self.records + len(self.copies or ())

    def __getitem__(self, item: int) -> Protein:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Protein]:
        """Return the items of one pack (the DataLoader prefers this to single items)."""
        of_copies = [item - self.records for item in items if item >= self.records]
        if self.copies is None or not of_copies:
            return [self.dataset[item] for item in items]
        copies = iter(self.copies.some(np.array(of_copies)))
        read: dict[int, Protein] = {}  # records that this pack has copies of
        found = []
        for item in items:
            if item < self.records:
                found.append(self.dataset[item])
                continue
            record, (start, stop), masked = next(copies)
            if record not in read:
                read[record] = self.dataset[record]
            sequence = read[record].sequence[start:stop]
            whole = [(0, len(sequence))]
            found.append(Protein(int(item), sequence, whole, masked=masked - start))
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Workers read items and plan nothing: with copies, tokens are many.
        return {name: value for name, value in self.__dict__.items() if name != "tokens"}
