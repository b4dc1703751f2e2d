"""Turn the records of one pack into the tensors that one forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from packedesm import alphabet
from packedesm.packing.dataset import Protein


@dataclass(frozen=True)
class PackedBatch:
    """Proteins standing back to back, without padding.

    A *segment* is what attention sees as one sequence: ``<cls>`` residues ``<eos>``. A record is
    one segment, or several overlapping ones under ``long_sequences: window``. T is the number of
    tokens, S of segments, R of records and P of residue positions in the pack.
    """

    input_ids: torch.Tensor  # int64 (T,)
    positions: torch.Tensor  # int64 (T,), from 0 in each segment
    cu_seqlens: torch.Tensor  # int32 (S + 1,), where each segment begins, and T
    residue_tokens: torch.Tensor  # int64 (K,), where tokens of residues stand
    residue_index: torch.Tensor | None  # int64 (K,), their residues 0..P-1; None if K = P, in order
    record_residues: torch.Tensor  # int64 (R,), embedded residues of each record
    record_segments: torch.Tensor  # int64 (R,), segments of each record
    rows: np.ndarray  # int64 (R,), on the host: the records' places in the shard
    residues: np.ndarray  # int64 (R,), on the host: embedded residues of each record
    lengths: tuple[int, ...]  # S segment lengths in tokens, on the host

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment."""
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

    def _map(self, function) -> PackedBatch:
        moved = {name: function(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **moved)


class VarlenCollator:
    """Collate function of the DataLoader: the proteins of one pack to one `PackedBatch`.

    It holds no state: what it returns depends on its argument alone, so workers can be restarted
    and packs can be made again in any order.
    """

    def __call__(self, proteins: Sequence[Protein]) -> PackedBatch:
        """Collate `proteins` (at least one) in their order."""
        spans = [span for protein in proteins for span in protein.segments]
        lengths = np.array([end - start + 2 for start, end in spans], np.int64)
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        input_ids = np.empty(cu_seqlens[-1], np.int64)
        input_ids[cu_seqlens[:-1]] = alphabet.CLS
        input_ids[cu_seqlens[1:] - 1] = alphabet.EOS
        is_residue = np.ones(len(input_ids), bool)
        is_residue[cu_seqlens[:-1]] = is_residue[cu_seqlens[1:] - 1] = False
        residue_index = _residue_index(proteins)
        record_lengths = np.array([len(protein.sequence) for protein in proteins], np.int64)
        residues = alphabet.encode(b"".join(protein.sequence for protein in proteins))
        input_ids[is_residue] = residues if residue_index is None else residues[residue_index]
        positions = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            residue_tokens=torch.from_numpy(np.flatnonzero(is_residue)),
            residue_index=None if residue_index is None else torch.from_numpy(residue_index),
            record_residues=torch.from_numpy(record_lengths),
            record_segments=torch.tensor([len(protein.segments) for protein in proteins]),
            residues=record_lengths,
            rows=np.array([protein.row for protein in proteins], np.int64),
            lengths=tuple(lengths.tolist()),
        )


def _residue_index(proteins: Sequence[Protein]) -> np.ndarray | None:
    """Return which residue of the pack each residue's token is; None if there are no windows."""
    if all(len(protein.segments) == 1 for protein in proteins):
        return None
    first, index = 0, []
    for protein in proteins:
        index += [np.arange(first + start, first + end) for start, end in protein.segments]
        first += len(protein.sequence)
    return np.concatenate(index)
