"""Read the records of one shard, in any order, as the packing plan asks for them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from packedesm.options import LengthPolicy
from packedesm.sequences.faidx import read_faidx


@dataclass(frozen=True, slots=True)
class Protein:
    """One record as it is embedded."""

    row: int  # its place among the records of the shard, from 0
    sequence: bytes  # the residues that are embedded, after truncation
    windows: list[tuple[int, int]]  # residue ranges that go through the model


class SequenceDataset(Dataset):
    """Map-style dataset over the records of one shard FASTA.

    The shard's ``.fai`` gives lengths and byte offsets, so that the packing plan is made before a
    sequence is read; a batch sampler then asks for one pack at a time. The FASTA is memory-mapped
    when the first record is read, in the process that reads it, so workers share the page cache
    and nothing but paths and numbers is sent to them. CUDA is never touched.

    Parameters
    ----------
    fasta
        A shard written by `packedesm.sequences.shards` (single-line records), with its ``.fai``.
    policy
        Which residues are embedded.

    Attributes
    ----------
    rows : int64 (N,)
        The records' rows in the whole input (the names in the shard's FASTA).
    lengths : int64 (N,)
        Residues in the shard FASTA.
    embedded_lengths : int64 (N,)
        Residues that are embedded.
    tokens : int64 (N,)
        Tokens that the model sees, ``<cls>`` and ``<eos>`` of every window included.
    shortened : int
        Records that lose residues under ``long_sequences: truncate``.
    """

    def __init__(self, fasta: Path, policy: LengthPolicy) -> None:
        self.fasta = Path(fasta)
        self.policy = policy
        self.rows, self.lengths, self._offsets = read_faidx(Path(f"{fasta}.fai"))
        self.embedded_lengths = policy.embedded(self.lengths)
        self.tokens = policy.tokens(self.lengths)
        self.shortened = int((self.embedded_lengths < self.lengths).sum())
        self._bytes: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> Protein:
        if self._bytes is None:
            with self.fasta.open("rb") as handle:
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self._offsets[item])
        sequence = self._bytes[start : start + int(self.embedded_lengths[item])]
        return Protein(int(item), sequence, self.policy.windows(int(self.lengths[item])))

    def __getitems__(self, items: Sequence[int]) -> list[Protein]:
        """Return the records of one pack (the DataLoader prefers this to single items)."""
        return [self[item] for item in items]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}  # a mapping cannot be sent to a worker
