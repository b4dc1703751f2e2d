"""Kernels of our own for what torch does in several passes over memory on a GPU, in Triton.

Each does in one pass what its twin does with torch, and rounds where the twin rounds: sums and
products are float32, results have the dtype of what they replace. `linear_gelu` alone rounds less,
since the product never leaves the registers. Twins are in `packedesm.esm2.steps`, `linear` and
`packedesm.embedding.pooling`.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import nn

from packedesm.alphabet import MASK

_TILE = 1024  # numbers that one program has at a time: 8 for each thread of 4 warps


@triton.jit
def _sine_cosine(x):  # type: ignore[no-untyped-def]
    """Return sine and cosine of float32 `x` within 0.8 units in the last place, below 400,000.

    Triton's own are the GPU's approximate instructions. π/2 is taken off in pieces of 6 bits, whose
    products with the count are exact, and what the last subtraction loses is carried along.
    """
    count = tl.floor(x * 0.6366197723675814 + 0.5)
    rest = (x - count * 1.5625) - count * 0.008056640625 - count * 0.00023651123046875
    rest -= count * 3.159046173095703e-06
    last = count * 1.5893254712295857e-08
    r = rest - last
    lost = (rest - r) - last
    z = r * r
    near_one = 1.0 - 0.5 * z
    bend = z * z * (0.041666646 + z * (-0.0013887362 + z * 2.443773e-05))
    cosine = near_one + (((1.0 - near_one) - 0.5 * z) + (bend - r * lost))
    bend = r * z * (-0.16666655 + z * (0.008332173 + z * -0.00019516656))
    sine = r + (bend + lost * near_one)
    quarter = count.to(tl.int32)
    odd = (quarter & 1) == 1
    of_x = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    return (
        tl.where((quarter & 2) == 2, -of_x[0], of_x[0]),
        tl.where(((quarter + 1) & 2) == 2, -of_x[1], of_x[1]),
    )


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["positions"])
def _rotate(  # type: ignore[no-untyped-def]
    qkv,
    positions,
    frequencies,
    tokens,
    STRIDE: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, BLOCK // 2)
    position = tl.load(positions + token, mask=token < tokens, other=0)
    frequency = tl.load(frequencies + pair, mask=pair < HEAD // 2, other=0.0)
    sine, cosine = _sine_cosine(position.to(tl.float32)[:, None] * frequency[None, :])
    place = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (place < HEAD)[None, :]
    at = qkv + token.to(tl.int64)[:, None] * STRIDE + place[None, :]
    at += tl.program_id(1) * HEADS * HEAD
    for _ in range(HEADS):
        x = tl.load(at, mask=inside, other=0.0)
        a, b = tl.split(tl.reshape(x.to(tl.float32), (TOKENS, BLOCK // 2, 2)))
        rotated = tl.join(a * cosine - b * sine, a * sine + b * cosine)
        tl.store(at, tl.reshape(rotated, (TOKENS, BLOCK)).to(x.dtype), mask=inside)
        at += HEAD


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, change, weight, bias, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    old = tl.load(x + start + place, mask=inside, other=0.0)
    added = tl.load(change + start + place, mask=inside, other=0.0)
    new = (old.to(tl.float32) + added.to(tl.float32)).to(old.dtype)
    tl.store(x + start + place, new, mask=inside)
    value = new.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
    # What the rounding of the mean has left: much, where numbers are far from zero.
    left = tl.sum(centred, 0) / WIDTH
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH - left * left + epsilon)
    scaled = (
        (centred - left) * scale * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    )
    shifted = scaled + tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + place, shifted.to(old.dtype), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _linear_gelu(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    tokens,
    K: tl.constexpr,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Programs that run at one time share rows of x and of the weight: 8 blocks of tokens, all of
    # whose columns come before the next 8.
    row, column = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), 8
    )
    token = row * TOKENS + tl.arange(0, TOKENS)
    place = column * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK)
    # What stands beyond the last token or column repeats it, and is not written.
    x += tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * K + k[None, :]
    weight += tl.minimum(place, N - 1)[None, :] * K + k[:, None]
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for first in range(0, K, BLOCK):
        if K % BLOCK == 0:
            a, b = tl.load(x), tl.load(weight)
        else:
            a = tl.load(x, mask=(first + k < K)[None, :], other=0.0)
            b = tl.load(weight, mask=(first + k < K)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        x += BLOCK
        weight += BLOCK
    total += tl.load(bias + place, mask=place < N, other=0.0).to(tl.float32)[None, :]
    activated = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    inside = (token < tokens)[:, None] & (place < N)[None, :]
    at = out + token.to(tl.int64)[:, None] * N + place[None, :]
    tl.store(at, activated.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["input_ids", "cu_seqlens"])
def _embed(  # type: ignore[no-untyped-def]
    input_ids,
    cu_seqlens,
    weight,
    out,
    kept,
    MASKED: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin = tl.load(cu_seqlens + tl.program_id(0))
    end = tl.load(cu_seqlens + tl.program_id(0) + 1)
    first = begin + tl.program_id(1) * TOKENS
    if first < end:
        found = tl.zeros((1024,), tl.int32)
        for start in range(begin, end, 1024):
            place = start + tl.arange(0, 1024)
            ids = tl.load(input_ids + place, mask=place < end, other=MASKED + 1)
            found += (ids == MASKED).to(tl.int32)
        masked = tl.sum(found, 0).to(tl.float32)
        # As torch: the reciprocal first, each division rounded to the nearest.
        scale = tl.div_rn(1.0, 1.0 - tl.div_rn(masked, (end - begin).to(tl.float32))) * kept
        token = first + tl.arange(0, TOKENS)
        ids = tl.load(input_ids + token, mask=token < end, other=0)
        scales = tl.where(ids == MASKED, 0.0, scale)
        for left in range(0, WIDTH, BLOCK):
            place = left + tl.arange(0, BLOCK)
            inside = (token < end)[:, None] & (place < WIDTH)[None, :]
            x = tl.load(weight + ids[:, None] * WIDTH + place[None, :], mask=inside, other=0.0)
            scaled = (x.to(tl.float32) * scales[:, None]).to(x.dtype)
            at = out + token.to(tl.int64)[:, None] * WIDTH + place[None, :]
            tl.store(at, scaled, mask=inside)


@triton.jit(do_not_specialize=["records"], do_not_specialize_on_alignment=["cu_seqlens"])
def _pool(  # type: ignore[no-untyped-def]
    hidden,
    cu_seqlens,
    out,
    records,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    record = tl.program_id(0).to(tl.int64)
    cls = tl.load(cu_seqlens + record).to(tl.int64)
    eos = tl.load(cu_seqlens + record + 1).to(tl.int64) - 1
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    largest = tl.full((TOKENS, BLOCK), float("-inf"), tl.float32)
    for first in range(cls + 1, eos, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = (token < eos)[:, None] & (place < WIDTH)[None, :]
        at = hidden + token[:, None] * WIDTH + place[None, :]
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += x
        x = tl.where(inside, x, float("-inf"))
        largest = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
    mean = tl.div_rn(tl.sum(total, 0), (eos - cls - 1).to(tl.float32))
    # `tl.max` passes over NaN.
    no_number = tl.max((largest != largest).to(tl.int32), 0)
    most = tl.where(no_number > 0, float("nan"), tl.max(largest, 0))
    within = place < WIDTH
    at = out + record * WIDTH + place
    dtype = out.dtype.element_ty
    tl.store(at, mean.to(dtype), mask=within)
    tl.store(at + records * WIDTH, most.to(dtype), mask=within)
    first_token = tl.load(hidden + cls * WIDTH + place, mask=within, other=0.0)
    tl.store(at + 2 * records * WIDTH, first_token.to(tl.float32).to(dtype), mask=within)


def rotate_(qkv: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> None:
    """Rotate each pair of neighbours of q and k by position times frequency, in place.

    Parameters
    ----------
    qkv
        (T, 3, H, Dh): q, k and v; v stays as it is.
    positions
        Whole numbers (T,), below `packedesm.esm2.steps.FURTHEST`.
    frequencies
        float32 (Dh / 2,), at most 1.
    """
    _check_contiguous(qkv, positions, frequencies)
    tokens, _, heads, head_dim = qkv.shape
    block = triton.next_power_of_2(head_dim)
    each = math.gcd(2 * heads, 8)  # heads of a program, for which it computes the phases once
    rows = max(1, _TILE // block)
    with torch.cuda.device_of(qkv):  # Triton launches on the current device, whatever it is given
        _rotate[(triton.cdiv(tokens, rows), 2 * heads // each)](
            *(qkv, positions, frequencies, tokens),
            **{"STRIDE": 3 * heads * head_dim, "HEAD": head_dim, "HEADS": each},
            **{"TOKENS": rows, "BLOCK": block},
            # A phase is the rounded product, as torch's; in one step with what is taken off next it
            # would not be rounded.
            enable_fp_fusion=False,
        )


def add_norm(x: torch.Tensor, change: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Add `change` (T, D) to `x` (T, D) in place, and return the LayerNorm of the sum, (T, D)."""
    _check_contiguous(x, change)
    out = torch.empty_like(x)
    width = x.shape[1]
    with torch.cuda.device_of(x):
        _add_norm[(len(x),)](
            *(x, change, norm.weight, norm.bias, out, norm.eps),
            **{"WIDTH": width, "BLOCK": triton.next_power_of_2(width)},
            num_warps=4 if width <= 2048 else 8,
        )
    return out


def linear_gelu(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return the exact (erf) GELU of `layer` of `x` (T, K) as (T, N)."""
    _check_contiguous(x, layer.weight)
    tokens, (n, k) = len(x), layer.weight.shape
    out = x.new_empty(tokens, n)
    tile = product_tile(_capability(x.device))
    grid = (triton.cdiv(n, tile["COLUMNS"]), triton.cdiv(tokens, tile["TOKENS"]))
    with torch.cuda.device_of(x):
        _linear_gelu[grid](x, layer.weight, layer.bias, out, tokens, K=k, N=n, **tile)
    return out


def embed(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    weight: torch.Tensor,
    kept: float,
) -> torch.Tensor:
    """Return embeddings (T, D) after token dropout, which `packedesm.esm2.steps.embed` explains.

    Parameters
    ----------
    input_ids
        int64 (T,).
    cu_seqlens
        int32 (sequences + 1,), where each sequence begins, then T.
    max_seqlen
        Tokens of the longest sequence.
    weight
        (33, D), one row for each token of the alphabet.
    kept
        Share of embeddings that training's masking left in place.
    """
    _check_contiguous(input_ids, cu_seqlens, weight)
    width = weight.shape[1]
    out = weight.new_empty(len(input_ids), width)
    tokens, block = 32, 64
    with torch.cuda.device_of(weight):
        _embed[(len(cu_seqlens) - 1, triton.cdiv(max_seqlen, tokens))](
            *(input_ids, cu_seqlens, weight, out, kept),
            **{"MASKED": MASK, "WIDTH": width, "TOKENS": tokens, "BLOCK": block},
        )
    return out


def pool(hidden: torch.Tensor, cu_seqlens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return mean and largest of each sequence's residues, and its ``<cls>``: (3, sequences, D).

    Parameters
    ----------
    hidden
        (T, D) token vectors; NaN in one gives NaN.
    cu_seqlens
        int32 (sequences + 1,), where each sequence begins, then T; each has a residue.
    dtype
        Number format of the result; the sums are float32.
    """
    _check_contiguous(hidden, cu_seqlens)
    records, width = len(cu_seqlens) - 1, hidden.shape[1]
    out = hidden.new_empty(3, records, width, dtype=dtype)
    tokens, block = 32, 64
    with torch.cuda.device_of(hidden):
        _pool[(records, triton.cdiv(width, block))](
            *(hidden, cu_seqlens, out, records),
            **{"WIDTH": width, "TOKENS": tokens, "BLOCK": block},
        )
    return out


def product_tile(capability: int) -> dict[str, int]:
    """Return how `linear_gelu` divides its work on GPUs whose compute capability begins so.

    128 registers a thread and, on Hopper and Blackwell's large GPUs, 98 kB of shared memory, else
    49: two programs stand on a processor, and while one computes its GELU the other one multiplies.
    """
    blocks = (
        {"BLOCK": 64, "num_stages": 3} if capability in (9, 10) else {"BLOCK": 32, "num_stages": 4}
    )
    return {"TOKENS": 128, "COLUMNS": 128, "num_warps": 8, **blocks}


@cache
def _capability(device: torch.device) -> int:
    """Return the first part of the compute capability; 0 for a CPU, which interprets."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def _check_contiguous(*tensors: torch.Tensor) -> None:
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("a kernel was given a tensor that is not contiguous")
