"""Sequences to one pack, for those who call the model themselves."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from packedesm.errors import UserError
from packedesm.notebook.request import LengthKeys, call_options, resolved, with_keys
from packedesm.notebook.source import Sequences, source_of
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import MemoryDataset
from packedesm.sequences.records import records_of


@with_keys(LengthKeys)
def pack(sequences: Sequences, **keys: Unpack[LengthKeys]) -> PackedBatch:
    """Return sequences as one pack, in their order, repeats included.

    How many fit is yours to decide: `packedesm.FirstFitDecreasingPacker` plans packs of a token
    budget from lengths.

    Parameters
    ----------
    sequences
        At least one, as `packedesm.embed` takes them.
    max_length, long_sequences, window_overlap
        What happens to long ones; as there.

    Returns
    -------
    PackedBatch
        On the CPU; ``to(device)`` moves it.

    Raises
    ------
    UserError
        If there is none, or one is no protein sequence.

    Examples
    --------
    >>> import packedesm
    >>> batch = packedesm.pack(["MKT", "GIGAV"])
    >>> batch.cu_seqlens.tolist()  # <cls> M K T <eos> <cls> G I G A V <eos>
    [0, 5, 12]
    >>> batch.lengths, batch.residue_tokens.tolist()
    ((5, 7), [1, 2, 3, 6, 7, 8, 9, 10])
    """
    shard, options = call_options(resolved("pack", keys, LengthKeys), depth=1)
    records = records_of(source_of(sequences), shard)
    if not len(records):
        raise UserError("sequences: there is none; a pack holds at least one")
    rows = np.arange(len(records))
    dataset = MemoryDataset(rows, records.sequences, options.length)
    return VarlenCollator()(dataset.__getitems__(rows.tolist()))
