"""One forward pass on one pack: its time, what of that each step takes, launches of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.compare import MAX_LENGTH, SEED
from benchmarks.gpu_parts.part import Task, told
from benchmarks.gpu_parts.sizes import LIMITS, PACK, REPEATS
from benchmarks.limits import Limits
from benchmarks.preparation import load
from benchmarks.sample import EXAMPLE, draw
from packedesm.device.timing import synchronise, time_repeats
from packedesm.esm2.attention import PREFERENCE, unavailable_reason
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein

LARGE = 10**9  # parameters: beyond these float32 takes longer than it is worth

# The step that a kernel or an operator belongs to, by what its name holds; the first match counts.
STEPS = {
    "product with GELU": ("linear_gelu",),
    "attention": ("flash", "fmha", "attention", "varlen", "softmax"),
    "rotary embedding": ("rotate", "rotary", "complex"),
    "residual sums and LayerNorm": ("add_norm", "layer_norm", "layernorm", "functor_add", "::add_"),
    "GELU": ("gelu",),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "addmm", "linear", "::mm"),
}
OTHER = "other"


def measure(task: Task) -> None:
    """Time every dtype, backend and kernel that the device has, the fastest ones first."""
    assert task.model
    device, geometry = torch.device(task.device), MODELS[task.model]
    batch = pack(PACK[task.device]).to(device)
    inputs = {**batch.inputs}
    tokens = sum(batch.lengths)
    _, state = load_state(load(task.scratch, geometry).path)
    result: dict[str, Any] = {"tokens": tokens, "longest": max(batch.lengths), "rows": []}
    result["flops"] = geometry.flops(batch.lengths)
    result["layers"] = geometry.layers
    for dtype in dtypes(device, geometry):
        if not task.in_time():
            return
        ceiling = geometry.layers * product_seconds(task, geometry, tokens, dtype)
        model = PackedESM2.from_fair_esm(state, geometry, dtype, device)
        for attention, kernels in ways(geometry, dtype, device):
            if not task.in_time():
                return
            model.use_kernels(kernels)
            forward = partial(model.forward_packed, **inputs, attention=attention)
            row = {"dtype": str(dtype).removeprefix("torch."), "attention": attention}
            row |= {"kernels": kernels, "product_ceiling_seconds": ceiling}
            result["rows"].append(row | told(partial(timed, forward, device, REPEATS[task.device])))
            task.save(result)


def pack(tokens: int) -> Any:
    """Return a batch of proteins of the example that holds about so many tokens."""
    drawn, total = [], 0
    for sequence in draw(EXAMPLE, 500, MAX_LENGTH, SEED):
        if total + len(sequence) + 2 <= tokens:
            total += len(sequence) + 2
            drawn.append(sequence.encode("ascii"))
    proteins = [Protein(row, text, [(0, len(text))]) for row, text in enumerate(drawn)]
    return VarlenCollator()(proteins)


def dtypes(device: torch.device, geometry: Geometry) -> list[torch.dtype]:
    """Return the dtypes that the device computes in, the fastest first."""
    halves = [torch.bfloat16, torch.float16]
    if device.type == "cpu":
        return [torch.float32]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        halves.remove(torch.bfloat16)
    return halves + [torch.float32] * (geometry.parameters < LARGE)


def ways(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield every attention backend that is there with the kernels that a job takes, and without.

    First of all what a job takes by itself.
    """
    kernels = dict.fromkeys([select_kernels(geometry, dtype, device).name, "torch"])
    for attention in PREFERENCE[device.type]:
        if unavailable_reason(attention, device, dtype, geometry.head_dim) is None:
            yield from ((attention, name) for name in kernels)


def product_seconds(task: Task, geometry: Geometry, tokens: int, dtype: torch.dtype) -> float:
    """Return the seconds of one layer's four products, measured one by one."""
    name = str(dtype).removeprefix("torch.")
    limits = Limits(task.device, [name], geometry, LIMITS[task.device], task.scratch)
    rates = [limits.measure(f"{product} {name}") for product in PRODUCTS]
    operations = [2 * tokens * geometry.width**2 * factor for factor in PRODUCTS.values()]
    return sum(done / rate for done, rate in zip(operations, rates, strict=True))


PRODUCTS = {"qkv": 3, "attention_out": 1, "fc1": 4, "fc2": 4}  # of width² weights


@torch.inference_mode()
def timed(forward: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the seconds of some calls, and what of one more the profiler says."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = time_repeats(forward, device, repeats=repeats, warm_up=2)
    peak = torch.cuda.max_memory_allocated(device) if cuda else None
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    for _ in range(2):  # the profiler's own start is in what it says of the first
        with torch.profiler.profile(activities=activities) as profiler:
            forward()
            synchronise(device)
    found = kernels_of(profiler) if cuda else operators_of(profiler)
    return {"seconds": seconds, "peak_bytes": peak, **by_step(found)}


def kernels_of(profiler: torch.profiler.profile) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of what the GPU did."""
    on_gpu = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [(event.name, event.time_range.elapsed_us() / 1e6, 1) for event in on_gpu]


def operators_of(profiler: torch.profiler.profile) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of operators on a CPU, without those they call."""
    averages = profiler.key_averages()
    return [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in averages]


def by_step(found: list[tuple[str, float, int]]) -> dict[str, Any]:
    """Return seconds and launches of each step, and the names that took longest, to see why."""
    steps = {step: {"seconds": 0.0, "launches": 0} for step in (*STEPS, OTHER)}
    names: dict[str, float] = {}
    for name, seconds, calls in found:
        known = (step for step, words in STEPS.items() if any(w in name.lower() for w in words))
        step = steps[next(known, OTHER)]
        step["seconds"] += seconds
        step["launches"] += calls
        names[name[:100]] = names.get(name[:100], 0.0) + seconds
    longest = dict(sorted(names.items(), key=lambda item: -item[1])[:15])
    return {"steps": steps, "longest": longest}
