"""Which records of a pack have only finite numbers, found where the vectors are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch

from packedesm.outputs import PAIR, RECORD, Array


def finite_records(
    vectors: Mapping[str, torch.Tensor], record_residues: torch.Tensor
) -> torch.Tensor:
    """Return which records have neither NaN nor infinity in a vector, without waiting for them.

    `packedesm.embedding.pack.not_finite` finds the same on the host, where reading what a GPU wrote
    can take as long as computing it.

    Parameters
    ----------
    vectors
        By array name, the lines of the records back to back, in the number format of the files.
    record_residues
        int32 (R,), embedded residues of each record, on the device of the vectors.

    Returns
    -------
    torch.Tensor
        bool (R,), on that device.
    """
    found = [torch.ones(len(record_residues), dtype=torch.bool, device=record_residues.device)]
    for name, tensor in vectors.items():
        # The largest of a line is not finite if one number is not: NaN is passed on. One pass over
        # the vectors, and nothing as large as they are is written.
        lines = tensor if tensor.dim() > 1 else tensor.unsqueeze(1)
        finite = torch.linalg.vector_norm(lines, torch.inf, dim=1) < torch.inf
        per = Array.named(name).per
        if per != RECORD:
            lengths = record_residues
            if per == PAIR:
                lengths = lengths * (lengths + 1) // 2
            least = torch.segment_reduce(finite.float(), "min", lengths=lengths, unsafe=True)
            finite = least > 0
        found.append(finite)
    return reduce(torch.logical_and, found)
