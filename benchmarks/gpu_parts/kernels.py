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

from benchmarks.gpu_parts.layers import dtypes, pack
from benchmarks.gpu_parts.part import Task, told
from benchmarks.gpu_parts.sizes import LIMITS, PACK, REPEATS
from benchmarks.limits import Limits
from packedesm.device.timing import time_repeats
from packedesm.embedding import pooling
from packedesm.errors import UserError
from packedesm.esm2 import linear, steps
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import VOCABULARY, Geometry
from packedesm.esm2.kernel_trials import first_product
from packedesm.esm2.registry import MODELS
from packedesm.esm2.steps import phases, rotate
from packedesm.packing.batch import PackedBatch

GEOMETRIES = ("esm2_t33_650M_UR50D", "esm2_t6_8M_UR50D", "esm2_t36_3B_UR50D")
CALLS = 20  # between two waits for the device: a kernel takes as long as the wait


@dataclass(frozen=True)
class Pair:
    """A kernel and its twin on the same input; both may overwrite it."""

    kernel: Callable[[], torch.Tensor]
    twin: Callable[[], torch.Tensor]
    moved: int  # bytes that the kernel must read and write


Maker = Callable[[Geometry, PackedBatch, torch.dtype], Pair]


def measure(task: Task) -> None:
    """Time all kernels at the widths of three models, in every dtype of the device."""
    device = torch.device(task.device)
    batch = pack(PACK[task.device]).to(device)
    result: dict[str, Any] = {"tokens": sum(batch.lengths), "rows": []}
    limits = Limits(task.device, [], MODELS[GEOMETRIES[0]], LIMITS[task.device], task.scratch)
    for name in GEOMETRIES:
        for dtype in dtypes(device, MODELS[name]):
            chosen = select_kernels(MODELS[name], dtype, device)
            if chosen.name == "torch":
                raise UserError(chosen.reason)
            if "copy_bytes_per_second" not in result:
                result["copy_bytes_per_second"] = limits.measure("copy")
            for kernel, make in KERNELS.items():
                if not task.in_time():
                    return
                row = {"kernel": kernel, "model": name, "dtype": str(dtype).removeprefix("torch.")}
                pair = make(MODELS[name], batch, dtype)
                result["rows"].append(
                    row | told(partial(timed, pair, device, REPEATS[task.device]))
                )
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


def rotate_(geometry: Geometry, batch: PackedBatch, dtype: torch.dtype) -> Pair:
    """q and k rotated where they stand; torch is given the phases."""
    positions = batch.positions
    shape = (len(positions), 3, geometry.heads, geometry.head_dim)
    qkv = normal(batch, *shape).to(dtype)
    frequencies = torch.logspace(0, -4, geometry.head_dim // 2, device=positions.device)
    rotary = phases(positions, frequencies)
    return Pair(
        kernel=lambda: triton_kernels().rotate_(qkv, positions, frequencies),
        twin=lambda: rotate(qkv[:, :2], rotary),
        moved=bytes_of(qkv[:, :2], qkv[:, :2]),
    )


def add_norm(geometry: Geometry, batch: PackedBatch, dtype: torch.dtype) -> Pair:
    """A residual sum and its LayerNorm."""
    x, change = normal(batch, 2, len(batch.positions), geometry.width).to(dtype)
    norm = nn.LayerNorm(geometry.width, device=x.device, dtype=dtype).requires_grad_(False)
    return Pair(
        kernel=lambda: triton_kernels().add_norm(x, change, norm),
        twin=lambda: norm(x.add_(change)),
        moved=bytes_of(x, change, x, x),
    )


def linear_gelu(geometry: Geometry, batch: PackedBatch, dtype: torch.dtype) -> Pair:
    """The feed-forward part's first product with its GELU; it is bound by operations."""
    x = normal(batch, len(batch.positions), geometry.width).to(dtype)
    layer = first_product(geometry, dtype, x.device)
    return Pair(
        kernel=lambda: triton_kernels().linear_gelu(x, layer),
        twin=lambda: linear.linear_gelu(x, layer),
        moved=bytes_of(x, x, x, x, x, layer.weight),
    )


def embed(geometry: Geometry, batch: PackedBatch, dtype: torch.dtype) -> Pair:
    """Embeddings after token dropout."""
    ids, begins = batch.input_ids, batch.cu_seqlens
    weight = normal(batch, VOCABULARY, geometry.width).to(dtype)
    longest = batch.max_seqlen
    return Pair(
        kernel=lambda: triton_kernels().embed(ids, begins, longest, weight, steps.TRAINED_KEPT),
        twin=lambda: steps.embed(ids, begins, weight),
        moved=bytes_of(ids) + len(ids) * geometry.width * dtype.itemsize,
    )


def pool(geometry: Geometry, batch: PackedBatch, dtype: torch.dtype) -> Pair:
    """Mean, maximum and ``<cls>`` of every sequence."""
    hidden = normal(batch, len(batch.positions), geometry.width).to(dtype)
    outputs = ("mean", "max", "cls")
    return Pair(
        kernel=lambda: triton_kernels().pool(hidden, batch.cu_seqlens, torch.float32),
        twin=lambda: pooling.pool(hidden, batch, outputs, "float32")["mean"],
        moved=bytes_of(hidden),
    )


def normal(batch: PackedBatch, *shape: int) -> torch.Tensor:
    """Return random numbers beside the pack, float32."""
    return torch.randn(shape, device=batch.positions.device)


def bytes_of(*tensors: torch.Tensor) -> int:
    """Return how many bytes the tensors hold; one that is read and written is named twice."""
    return sum(tensor.nbytes for tensor in tensors)


KERNELS: dict[str, Maker] = {
    "rotate_": rotate_,
    "add_norm": add_norm,
    "linear_gelu": linear_gelu,
    "embed": embed,
    "pool": pool,
}
