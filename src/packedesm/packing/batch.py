"""The tensors of one pack, and how they travel to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PackedBatch:
    """Proteins standing back to back, without padding.

    A *sequence* is what attention sees as one: ``<cls>`` residues ``<eos>``. A record is one
    sequence, or under ``long_sequences: window`` several, one for each of its windows. T is the
    number of tokens, S of sequences, R of records and P of residue positions in the pack.
    """

    input_ids: torch.Tensor  # int64 (T,)
    positions: torch.Tensor  # int64 (T,), from 0 in each sequence
    cu_seqlens: torch.Tensor  # int32 (S + 1,), where each sequence begins, and T
    residue_tokens: torch.Tensor  # int64 (K,), where tokens of residues stand
    residue_index: torch.Tensor | None  # int64 (K,), their residues 0..P-1; None if K = P, in order
    record_residues: torch.Tensor  # int64 (R,), embedded residues of each record
    record_windows: torch.Tensor  # int64 (R,), windows of each record
    rows: np.ndarray  # int64 (R,), on the host: the records' places in the shard
    residues: np.ndarray  # int64 (R,), on the host: embedded residues of each record
    lengths: tuple[int, ...]  # S sequence lengths in tokens, on the host

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
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on `device`; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the CUDA allocator that `stream` reads this batch."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        moved: dict[str, Any] = {name: function(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **moved)
