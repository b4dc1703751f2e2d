"""The tensors of one pack, and how they travel to the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from packedesm.options import SPECIAL_TOKENS

# Each tensor of a pack begins at a multiple of 16 bytes: kernels read such addresses faster, and
# Triton compiles one for each kind of address that it meets.
_ALIGNMENT = 4


@dataclass(frozen=True)
class PackedBatch:
    """Proteins standing back to back, without padding.

    A *sequence* is what attention sees as one: ``<cls>`` residues ``<eos>``. A record is one
    sequence, or under ``long_sequences: window`` several, one for each of its windows. T is the
    number of tokens, S of sequences, R of records and P of residue positions in the pack.

    Or all sequences are masked copies, in each of which one residue is ``<mask>``: then what is
    said of records is true of copies, whose one residue is the masked one, so that R = S = P.

    All tensors are parts of `numbers`, so that one copy takes a pack to a worker's parent, into
    page-locked memory, or to the device.
    """

    numbers: torch.Tensor  # int32, the tensors below one behind the other
    rows: np.ndarray  # int64 (R,), on the host: which items of the job the records are
    residues: np.ndarray  # int64 (R,), on the host: embedded residues of each record
    lengths: tuple[int, ...]  # S sequence lengths in tokens, on the host
    masked: bool = False  # whether these are masked copies

    @classmethod
    def zeros(
        cls,
        rows: np.ndarray,
        residues: np.ndarray,
        lengths: tuple[int, ...],
        *,
        masked: bool = False,
    ) -> PackedBatch:
        """Return a pack whose tensors are still to be filled in."""
        batch = cls(torch.empty(0, dtype=torch.int32), rows, residues, lengths, masked)
        size = sum(map(_aligned, batch._sizes().values()))
        return replace(batch, numbers=torch.zeros(size, dtype=torch.int32))

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids, int32 (T,)."""
        return self._part("input_ids")

    @property
    def positions(self) -> torch.Tensor:
        """Each token's place in its sequence, from 0: int32 (T,)."""
        return self._part("positions")

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each sequence begins, and T: int32 (S + 1,)."""
        return self._part("cu_seqlens")

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Where tokens of residues stand: int32 (K,)."""
        return self._part("residue_tokens")

    @property
    def residue_index(self) -> torch.Tensor | None:
        """Which residue 0..P-1 each of `residue_tokens` is, int32 (K,); None if it is the K-th."""
        return self._part("residue_index") if self.windowed else None

    @property
    def record_residues(self) -> torch.Tensor:
        """Embedded residues of each record, int32 (R,)."""
        return self._part("record_residues")

    @property
    def record_windows(self) -> torch.Tensor:
        """Windows of each record, int32 (R,)."""
        return self._part("record_windows")

    @property
    def masked_tokens(self) -> torch.Tensor:
        """Where the masked token of each copy stands: int32 (S,); empty without copies."""
        return self._part("masked_tokens")

    @property
    def masked_residues(self) -> torch.Tensor:
        """Token ids of the residues that were masked: int32 (S,); empty without copies."""
        return self._part("masked_residues")

    @property
    def windowed(self) -> bool:
        """Whether a record has more windows than one."""
        return len(self.lengths) > len(self.rows)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def inputs(self) -> dict[str, Any]:
        """What `PackedESM2.forward_packed` takes of this pack, by name."""
        names = ("input_ids", "positions", "cu_seqlens", "max_seqlen", "lengths")
        return {name: getattr(self, name) for name in names}

    def pin_memory(self) -> PackedBatch:
        """Return the batch in page-locked memory, from where copies to a GPU are asynchronous."""
        return replace(self, numbers=self.numbers.pin_memory())

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on `device`; from page-locked memory the copy is asynchronous."""
        return replace(self, numbers=self.numbers.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the CUDA allocator that `stream` reads this batch."""
        self.numbers.record_stream(stream)

    def _sizes(self) -> dict[str, int]:
        """Return how many numbers each tensor has, in the order in which they stand."""
        tokens, sequences, records = sum(self.lengths), len(self.lengths), len(self.rows)
        residue_tokens = tokens - SPECIAL_TOKENS * sequences
        return {
            "input_ids": tokens,
            "positions": tokens,
            "cu_seqlens": sequences + 1,
            "residue_tokens": residue_tokens,
            "residue_index": residue_tokens if self.windowed else 0,
            "record_residues": records,
            "record_windows": records,
            "masked_tokens": sequences if self.masked else 0,
            "masked_residues": sequences if self.masked else 0,
        }

    def _part(self, name: str) -> torch.Tensor:
        start = 0
        for part, size in self._sizes().items():
            if part == name:
                break
            start += _aligned(size)
        return self.numbers[start : start + size]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
