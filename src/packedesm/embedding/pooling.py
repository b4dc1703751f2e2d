"""From one vector per token to what is kept of each protein."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from packedesm.errors import UserError, plural, quote
from packedesm.options import SPECIAL_TOKENS

if TYPE_CHECKING:
    from packedesm.packing.batch import PackedBatch

_POOLED = ("mean", "cls", "max", "residue")
_FORMATS = ("float32", "float16", "bfloat16", "float64")


def pool(
    hidden: torch.Tensor,
    batch: PackedBatch,
    outputs: Sequence[str],
    output_dtype: str,
    *,
    fused: bool = False,
) -> dict[str, torch.Tensor]:
    """Pool the token vectors of one pack, on the device they are on.

    Sums are taken in float32, whatever `hidden` is, and only over residues: ``<cls>`` and
    ``<eos>`` are left out of ``mean``, ``max`` and ``residue``. Where windows overlap, a residue's
    vector is the mean over its windows, and ``cls`` the mean over the windows' ``<cls>``.

    Parameters
    ----------
    hidden
        (T, D) token vectors.
    batch
        The pack, on the same device.
    outputs
        Any of ``mean``, ``cls``, ``max``, ``residue``.
    output_dtype
        Number format of the result, such as ``float16``.
    fused
        Whether a kernel of `packedesm.esm2.triton_kernels` pools: where there are no windows.

    Returns
    -------
    dict
        Per output an (R, D) tensor; for ``residue`` (P, D), the records back to back.

    Raises
    ------
    UserError
        If `outputs` names another one, or is a text; if there is no such number format; or if
        `hidden` are not the token vectors of this pack.
    """
    _check_outputs(outputs, output_dtype)
    _check_vectors(hidden, batch)
    dtype = getattr(torch, output_dtype)
    if fused and batch.residue_index is None:
        pooled = _pool_fused(hidden, batch, dtype)
        if "residue" in outputs:
            pooled["residue"] = hidden.index_select(0, batch.residue_tokens).to(dtype)
        return {output: pooled[output] for output in outputs}
    pooled = {}
    if set(outputs) != {"cls"}:
        residues = _residues(hidden, batch)
    for output in outputs:
        if output == "residue":
            pooled[output] = residues.to(dtype)
        elif output == "cls":
            cls = hidden.index_select(0, batch.cu_seqlens[:-1]).float()
            pooled[output] = _reduce(cls, "mean", batch.record_windows).to(dtype)
        else:
            pooled[output] = _reduce(residues, output, batch.record_residues).to(dtype)
    return pooled


def _check_outputs(outputs: Sequence[str], output_dtype: str) -> None:
    if isinstance(outputs, str):
        raise UserError(f"pool() takes a list of outputs, not {quote(outputs)}; give [{outputs!r}]")
    for output in outputs:
        if output not in _POOLED:
            raise UserError(
                f"pool() makes no {quote(str(output))}; give some of {', '.join(_POOLED)}"
            )
    if output_dtype not in _FORMATS:
        raise UserError(
            f"pool() knows no number format {quote(str(output_dtype))}; give the name of one: "
            f"{', '.join(_FORMATS)}"
        )


def _check_vectors(hidden: torch.Tensor, batch: PackedBatch) -> None:
    """Raise UserError unless these can be what the model returned for the pack.

    Of another pack's vectors segments would be reduced all the same.
    """
    if not isinstance(hidden, torch.Tensor):
        raise UserError(
            f"pool(): hidden is of type {type(hidden).__name__}, not a tensor; give what the model "
            "returned for the pack"
        )
    if not hasattr(batch, "lengths"):
        raise UserError(
            f"pool(): batch is of type {type(batch).__name__}, not a pack; give what "
            "packedesm.pack([...]) returned"
        )
    tokens = sum(batch.lengths)
    if hidden.ndim != 2 or len(hidden) != tokens:
        raise UserError(
            f"pool(): hidden is of shape {tuple(hidden.shape)}, and the pack has "
            f"{plural(tokens, 'token')}; give what the model returned for this very pack"
        )
    if hidden.device != batch.numbers.device:
        raise UserError(
            f"pool(): hidden is on {hidden.device}, the pack on {batch.numbers.device}; give "
            "batch.to(hidden.device)"
        )


def _pool_fused(
    hidden: torch.Tensor, batch: PackedBatch, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    from packedesm.esm2 import triton_kernels  # here: most installations for a CPU lack Triton

    mean, largest, cls = triton_kernels.pool(hidden, batch.cu_seqlens, dtype)
    return {"mean": mean, "max": largest, "cls": cls}


def over_residues(lines: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return a line for every residue: where windows overlap, the mean of its windows' lines.

    Parameters
    ----------
    lines
        float32 (K,) or (K, C): one line for each of `PackedBatch.residue_tokens`.
    batch
        The pack, on the same device.

    Returns
    -------
    torch.Tensor
        float32 (P,) or (P, C).
    """
    if batch.residue_index is None:
        return lines
    flat = lines.reshape(len(lines), -1)
    total = flat.new_zeros(int(batch.residues.sum()), flat.shape[1])
    times = flat.new_zeros(len(total), 1)
    lengths = [length - SPECIAL_TOKENS for length in batch.lengths]
    _add_windows(total, flat, batch.residue_index, lengths)
    _add_windows(times, times.new_ones(len(flat), 1), batch.residue_index, lengths)
    return (total / times).reshape(len(total), *lines.shape[1:])


def _residues(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the (P, D) residue vectors in float32, windows averaged."""
    return over_residues(hidden.index_select(0, batch.residue_tokens).float(), batch)


def _add_windows(
    total: torch.Tensor, vectors: torch.Tensor, places: torch.Tensor, lengths: Sequence[int]
) -> None:
    """Add what each window has to its residues in `total`, in a fixed order on every device.

    Where three windows overlap, another order gives other bits.
    """
    if total.device.type == "cuda":
        # It sorts there, index_add_ does not; on a CPU its threads add as they come.
        total.index_put_((places,), vectors, accumulate=True)
        return
    for window, place in zip(vectors.split(lengths), places.split(lengths), strict=True):
        total[place[0] : place[0] + len(window)] += window


def _reduce(vectors: torch.Tensor, how: str, lengths: torch.Tensor) -> torch.Tensor:
    # unsafe skips checks of `lengths` that would wait for the device.
    return torch.segment_reduce(vectors, how, lengths=lengths, unsafe=True)
