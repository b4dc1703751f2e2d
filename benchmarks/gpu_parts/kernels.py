"""Each fused kernel beside the plain torch that defines it, and beside a copy of as many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.layers import dtypes
from benchmarks.gpu_parts.part import Task
from benchmarks.gpu_parts.sizes import LIMITS, PACK, REPEATS
from benchmarks.limits import Limits
from packedesm.device.timing import time_repeats
from packedesm.errors import UserError
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import rotate
from packedesm.esm2.registry import MODELS

GEOMETRIES = ("esm2_t33_650M_UR50D", "esm2_t6_8M_UR50D", "esm2_t36_3B_UR50D")
CALLS = 20  # between two waits for the device: a kernel takes as long as the wait


@dataclass(frozen=True)
class Pair:
    """A kernel and its twin on the same input; both may overwrite it."""

    kernel: Callable[[], torch.Tensor]
    twin: Callable[[], torch.Tensor]
    moved: int  # bytes that the kernel must read and write


Maker = Callable[[Geometry, int, torch.dtype, torch.device], Pair]


def measure(task: Task) -> None:
    """Time all kernels at the widths of three models, in every dtype of the device."""
    device = torch.device(task.device)
    result: dict[str, Any] = {"tokens": PACK[task.device], "rows": []}
    limits = Limits(task.device, [], MODELS[GEOMETRIES[0]], LIMITS[task.device], task.scratch)
    for name in GEOMETRIES:
        for dtype in dtypes(device, MODELS[name]):
            chosen = select_kernels(MODELS[name], dtype, device)
            if chosen.name != "triton":
                raise UserError(chosen.reason)
            result.setdefault("copy_bytes_per_second", limits.measure("copy"))
            for kernel, make in KERNELS.items():
                if not task.in_time():
                    return
                row = {"kernel": kernel, "model": name, "dtype": str(dtype).removeprefix("torch.")}
                pair = make(MODELS[name], PACK[task.device], dtype, device)
                result["rows"].append(row | timed(pair, device, REPEATS[task.device]))
                task.save(result)


@torch.inference_mode()
def timed(pair: Pair, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the seconds of one call of each, and the kernel's bytes per second."""

    def seconds(work: Callable[[], Any]) -> float:
        many = time_repeats(
            lambda: [work() for _ in range(CALLS)], device, repeats=repeats, warm_up=1
        )
        return statistics.median(many) / CALLS

    kernel, twin = seconds(pair.kernel), seconds(pair.twin)
    return {"seconds": kernel, "twin_seconds": twin, "bytes_per_second": pair.moved / kernel}


def triton_kernels() -> ModuleType:
    """Return the module, which only a machine with Triton can import."""
    from packedesm.esm2 import triton_kernels

    return triton_kernels


def rotate_(geometry: Geometry, tokens: int, dtype: torch.dtype, device: torch.device) -> Pair:
    """q and k rotated where they stand."""
    shape = (tokens, 3, geometry.heads, geometry.head_dim)
    qkv = torch.randn(shape, device=device).to(dtype)
    angles = torch.rand(tokens, 1, 1, geometry.head_dim // 2, device=device)
    rotary = torch.polar(torch.ones_like(angles), angles)
    return Pair(
        kernel=lambda: triton_kernels().rotate_(qkv, rotary),
        twin=lambda: rotate(qkv[:, :2], rotary),
        moved=2 * 2 * tokens * geometry.width * dtype.itemsize,
    )


def add_norm(geometry: Geometry, tokens: int, dtype: torch.dtype, device: torch.device) -> Pair:
    """A residual sum and its LayerNorm."""
    draw = partial(torch.randn, tokens, geometry.width, device=device)
    x, change = draw().to(dtype), draw().to(dtype)
    norm = nn.LayerNorm(geometry.width, device=device, dtype=dtype).requires_grad_(False)
    return Pair(
        kernel=lambda: triton_kernels().add_norm(x, change, norm),
        twin=lambda: norm(x.add_(change)),
        moved=4 * tokens * geometry.width * dtype.itemsize,
    )


KERNELS: dict[str, Maker] = {"rotate_": rotate_, "add_norm": add_norm}
