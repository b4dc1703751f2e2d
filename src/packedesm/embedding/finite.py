"""Which records of a pack have only finite numbers, found where the vectors are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch


def finite_records(
    vectors: Mapping[str, torch.Tensor], record_residues: torch.Tensor
) -> torch.Tensor:
    """Return which records have neither NaN nor infinity in a vector, without waiting for them.

    `packedesm.embedding.pack.not_finite` finds the same on the host, where reading what a GPU wrote
    can take as long as computing it.

    Parameters
    ----------
    vectors
        Per output (R, D), for ``residue`` (P, D), in the number format of the files.
    record_residues
        int32 (R,), embedded residues of each record, on the device of the vectors.

    Returns
    -------
    torch.Tensor
        bool (R,), on that device.
    """
    found = []
    for output, tensor in vectors.items():
        # The largest of a row is not finite if one number is not: NaN is passed on. One pass over
        # the vectors, and nothing as large as they are is written.
        finite = torch.linalg.vector_norm(tensor, torch.inf, dim=1) < torch.inf
        if output == "residue":
            least = torch.segment_reduce(
                finite.float(), "min", lengths=record_residues, unsafe=True
            )
            finite = least > 0
        found.append(finite)
    return reduce(torch.logical_and, found)
