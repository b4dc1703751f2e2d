"""Turn the records of one pack into the tensors that one forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packedesm import alphabet
from packedesm.options import SPECIAL_TOKENS
from packedesm.packing.batch import PackedBatch
from packedesm.packing.dataset import Protein


class VarlenCollator:
    """Collate function of the DataLoader: the proteins of one pack to one `PackedBatch`.

    It holds no state: what it returns depends on its argument alone, so workers can be restarted
    and packs can be made again in any order.
    """

    def __call__(self, proteins: Sequence[Protein]) -> PackedBatch:
        """Collate `proteins` (at least one) in their order: all records, or all masked copies."""
        masked = [protein.masked for protein in proteins if protein.masked is not None]
        if masked and len(masked) < len(proteins):
            raise ValueError("a pack holds records or masked copies, not both")
        lengths = [
            end - start + SPECIAL_TOKENS for protein in proteins for start, end in protein.windows
        ]
        batch = PackedBatch.zeros(
            rows=np.array([protein.row for protein in proteins], np.int64),
            # Of a copy the one that is masked: of no other there is anything to tell.
            residues=np.array([1 if masked else len(p.sequence) for p in proteins], np.int64),
            lengths=tuple(lengths),
            masked=bool(masked),
        )
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        is_residue = np.ones(cu_seqlens[-1], bool)
        is_residue[cu_seqlens[:-1]] = is_residue[cu_seqlens[1:] - 1] = False
        residues = alphabet.encode(b"".join(protein.sequence for protein in proteins))
        if batch.residue_index is not None:
            batch.residue_index.numpy()[:] = index = _residue_index(proteins)
            residues = residues[index]
        input_ids = batch.input_ids.numpy()
        input_ids[cu_seqlens[:-1]] = alphabet.CLS
        input_ids[cu_seqlens[1:] - 1] = alphabet.EOS
        input_ids[is_residue] = residues
        if masked:
            places = cu_seqlens[:-1] + 1 + masked
            batch.masked_tokens.numpy()[:] = places
            batch.masked_residues.numpy()[:] = input_ids[places]
            input_ids[places] = alphabet.MASK
        batch.positions.numpy()[:] = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)
        batch.cu_seqlens.numpy()[:] = cu_seqlens
        batch.residue_tokens.numpy()[:] = np.flatnonzero(is_residue)
        batch.record_residues.numpy()[:] = batch.residues
        batch.record_windows.numpy()[:] = [len(protein.windows) for protein in proteins]
        return batch


def _residue_index(proteins: Sequence[Protein]) -> np.ndarray:
    """Return which residue of the pack each residue's token is."""
    first, index = 0, []
    for protein in proteins:
        index += [np.arange(first + start, first + end) for start, end in protein.windows]
        first += len(protein.sequence)
    return np.concatenate(index)
