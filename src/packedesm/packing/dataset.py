"""Read the records of one shard, in any order, as the packing plan asks for them."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from packedesm.files import expect
from packedesm.options import LengthPolicy
from packedesm.sequences.faidx import read_faidx


@dataclass(frozen=True, slots=True)
class Protein:
    """One record as it is embedded, or a masked copy of it, see `packedesm.packing.items`."""

    row: int  # its place among the items of the job: records, from 0, and copies
    sequence: bytes  # the residues that are embedded, after truncation
    windows: list[tuple[int, int]]  # residue ranges that go through the model
    masked: int | None = None  # of a copy, the place of the masked residue in `sequence`


class SequenceDataset(Dataset):
    """Map-style dataset over the records of one shard FASTA.

    The shard's ``.fai`` gives lengths and byte offsets, so that the packing plan is made before a
    sequence is read; a batch sampler then asks for one pack at a time. The FASTA is memory-mapped
    when the first record is read, in the process that reads it, so workers share the page cache
    and nothing but paths and numbers is sent to them. CUDA is never touched.

    Each record is checked as it is read, its line of header by its row and its residues by their
    digest: a file that was right when the job began may be damaged hours later.

    Parameters
    ----------
    fasta
        A shard written by `packedesm.sequences.shards` (single-line records), with its ``.fai`` and
        ``.sha256``: the first 8 bytes of the SHA-256 of each sequence.
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
        self._bytes: Any = None
        self._digests: Any = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> Protein:
        if self._bytes is None:
            self._open()
        header = b">%d\n" % self.rows[item]
        start, length = int(self._offsets[item]), int(self.lengths[item])
        text = self._bytes[start - len(header) : start + length + 1]
        sequence = text[len(header) : -1]
        expect(self.fasta, text, b"%b%b\n" % (header, sequence))
        digest = hashlib.sha256(sequence).digest()[:8]
        expect(self.fasta, digest, self._digests[item].tobytes())
        embedded = sequence[: int(self.embedded_lengths[item])]
        return Protein(int(item), embedded, self.policy.windows(length))

    def _open(self) -> None:
        """Map the shard's files; Damaged if they cannot be those that were written."""
        digests = Path(f"{self.fasta}.sha256")
        expect(digests, digests.stat().st_size, 8 * len(self))
        self._digests = np.memmap(digests, np.uint64, mode="r")
        with self.fasta.open("rb") as handle:
            size = int(self._offsets[-1] + self.lengths[-1] + 1)
            expect(self.fasta, handle.seek(0, 2), size)
            self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitems__(self, items: Sequence[int]) -> list[Protein]:
        """Return the records of one pack (the DataLoader prefers this to single items)."""
        return [self[item] for item in items]

    def __getstate__(self) -> dict:
        # A mapping cannot be sent to a worker.
        return {**self.__dict__, "_bytes": None, "_digests": None}
