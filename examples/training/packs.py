"""Whole proteins as packed batches, as inference would see them."""

from collections.abc import Iterator, Sequence

import numpy as np

from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs

LONGEST = 1022  # residues that are seen, the default of `max_length`
TOKEN_BUDGET = 8192


def packs(sequences: Sequence[bytes]) -> Iterator[tuple[np.ndarray, PackedBatch]]:
    """Yield packs of `sequences`, each with the indices of its sequences, (R,)."""
    shown = [sequence[:LONGEST] for sequence in sequences]
    plan = plan_packs(np.array([len(sequence) + 2 for sequence in shown]), TOKEN_BUDGET)
    for pack in range(len(plan)):
        proteins = [Protein(int(item), shown[item], [(0, len(shown[item]))]) for item in plan[pack]]
        yield plan[pack], VarlenCollator()(proteins)
