"""Whether `packedesm.esm2.triton_kernels` are used on a device; chosen once."""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
from torch import nn

from packedesm.errors import first_line
from packedesm.esm2.attention import Selection
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import rotate

_TOKENS = 7  # of the trial


def select_kernels(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Selection:
    """Return ``triton`` where its kernels work on the device, else ``torch``, and why."""
    if device.type != "cuda":
        return Selection("torch", "Triton's kernels are for a GPU")
    if importlib.util.find_spec("triton") is None:
        return Selection("torch", "Triton is not installed")
    try:
        right = _right(geometry, dtype, device)
    except Exception as error:  # Triton compiles on the spot: without a C compiler, on an old GPU
        return Selection("torch", f"Triton's kernels do not work here ({first_line(error)})")
    if not right:
        return Selection("torch", "Triton's kernels compute something else here")
    return Selection("triton", "chosen automatically on a GPU")


@torch.inference_mode()
def _right(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> bool:
    """Compile the kernels and tell whether they agree with what they replace."""
    from packedesm.esm2 import triton_kernels

    draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(1), device=device)
    qkv = draw(_TOKENS, 3, geometry.heads, geometry.head_dim).to(dtype)
    angles = 100 * draw(_TOKENS, 1, 1, geometry.head_dim // 2)
    rotary = torch.polar(torch.ones_like(angles), angles)
    rotated = rotate(qkv[:, :2].clone(), rotary)
    triton_kernels.rotate_(qkv, rotary)
    x, change = draw(2, _TOKENS, geometry.width).to(dtype)
    norm = nn.LayerNorm(geometry.width, device=device, dtype=dtype)
    normed = norm(x + change)
    found = triton_kernels.add_norm(x, change, norm)
    close = 8 * torch.finfo(dtype).eps
    pairs = ((qkv[:, :2], rotated), (found, normed))
    return all(torch.allclose(a, b, rtol=close, atol=close) for a, b in pairs)
