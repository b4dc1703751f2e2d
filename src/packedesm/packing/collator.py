"""Turn the records of one pack into the tensors that one forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from packedesm import alphabet
from packedesm.packing.batch import PackedBatch
from packedesm.packing.dataset import Protein


class VarlenCollator:
    """Collate function of the DataLoader: the proteins of one pack to one `PackedBatch`.

    It holds no state: what it returns depends on its argument alone, so workers can be restarted
    and packs can be made again in any order.
    """

    def __call__(self, proteins: Sequence[Protein]) -> PackedBatch:
        """Collate `proteins` (at least one) in their order."""
        spans = [span for protein in proteins for span in protein.windows]
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
            record_windows=torch.tensor([len(protein.windows) for protein in proteins]),
            residues=record_lengths,
            rows=np.array([protein.row for protein in proteins], np.int64),
            lengths=tuple(lengths.tolist()),
        )


def _residue_index(proteins: Sequence[Protein]) -> np.ndarray | None:
    """Return which residue of the pack each residue's token is; None if there are no windows."""
    if all(len(protein.windows) == 1 for protein in proteins):
        return None
    first, index = 0, []
    for protein in proteins:
        index += [np.arange(first + start, first + end) for start, end in protein.windows]
        first += len(protein.sequence)
    return np.concatenate(index)
