"""Small computations on a device beside the same in float32 on the CPU, and what torch knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from packedesm.device.auto import compute_dtype, load_fitting, load_model, resolve_dtype
from packedesm.device.cpu import slow_reason
from packedesm.device.gpus import visible_gpus
from packedesm.device.hardware import Device, fits, job_gpus
from packedesm.device.memory import out_of_memory
from packedesm.device.nvml import driver_version
from packedesm.device.precision import fix_precision
from packedesm.device.trial import product_fault
from packedesm.errors import Fault, UserError, first_line
from packedesm.esm2 import kernels
from packedesm.esm2.attention import (
    PREFERENCE,
    Sequences,
    attend,
    select_backend,
    unavailable_reason,
)
from packedesm.esm2.checkpoints import prepare, read_geometry
from packedesm.esm2.fused import TORCH, TRITON, select_kernels
from packedesm.esm2.geometry import VOCABULARY
from packedesm.esm2.int8 import INT8
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.model_files import weight_files
from packedesm.esm2.registry import DEMO, MODELS, Checkpoint, locate
from packedesm.reference.comparison import AUTO_LIMITS

Facts = Iterator[dict[str, Any]]

FORMATS = list(AUTO_LIMITS)
_ATTENTION_FORMATS = [name for name in FORMATS if name != INT8]  # there it is one of the others
_LENGTHS = (3, 40, 5, 130)  # tokens of the sequences of a pack
_HEADS, _HEAD_DIM = 2, 64  # which every backend computes; the models from 650M on have such heads
_GPU = torch.device("cuda", 0)
_QUICK_BYTES = 1_000_000_000  # a file up to this size is read whole without being asked to


def machine(device: str) -> Facts:
    """Tell of torch, driver, the GPUs that a job may take under a `device` option, and the CPU."""
    yield {"torch": {"version": torch.__version__, "cuda": torch.version.cuda}}
    yield {"doing": "asking the driver"}
    driver = driver_version()
    newest = driver and ".".join(map(str, driver[1]))
    fit = fits(driver and driver[1], torch.version.cuda)
    yield {"driver": driver and {"version": driver[0], "cuda": newest, "fits_torch": fit}}
    visible = visible_gpus()
    if device != "cpu":
        yield {"unread": visible.unread}
    try:
        taken, reason = job_gpus(device)
        # In the machine's order, by which people number them.
        yield {"gpus": [asdict(gpu) for gpu in visible.gpus if taken], "reason": reason}
    except (Fault, UserError) as error:
        yield {"refused": str(error)}
    cpu = torch.device("cpu")
    yield {
        "cpu": Device.of(cpu).describe(),
        "kernels": kernels.unavailable_reason(cpu, torch.float32, _HEAD_DIM),
    }
    yield from _computing(cpu)


def gpu() -> Facts:
    """Tell of the GPU that CUDA shows first."""
    yield {"doing": "starting CUDA"}
    fix_precision()
    if fault := product_fault(_GPU):
        yield {"unfit": fault}
        return
    yield {"capability": list(torch.cuda.get_device_capability(_GPU))}
    yield from _computing(_GPU)


def checkpoints(folder: str, model: str, read_all: str) -> Facts:
    """Tell of each model in the folder, and of `model`, whether its weights are whole.

    Files of more than a gigabyte are read only if `read_all` says ``yes``; of others the digest is
    compared with the published one, if there is one.
    """
    for name in dict.fromkeys([*MODELS, model]):
        path = locate(name, folder)
        if not path.exists():
            continue
        yield {"doing": f"reading {path}"}
        found: dict[str, Any] = {"model": name, "path": str(path), "digest": "not read"}
        try:
            found["bytes"] = sum(file.stat().st_size for file in weight_files(path))
            if read_all == "yes" or found["bytes"] <= _QUICK_BYTES:
                whole = prepare(name, folder)
                found["digest"] = "published" if whole.digest_checked else "none published"
                found["sha256"] = whole.sha256
            else:
                read_geometry(path)
        except (UserError, OSError) as error:
            found["fault"] = str(error)
        yield found


def _computing(device: torch.device) -> Facts:
    """Tell how far the small model is off in each number format, and attention in each backend."""
    checkpoint = prepare(DEMO, "auto")
    exact = load_model(checkpoint, torch.float32, torch.device("cpu"))
    alone = torch.cat([_hidden(exact, [length], "sdpa") for length in _LENGTHS])
    first = resolve_dtype("auto", device)[0]
    for dtype in (first, *(name for name in FORMATS if name != first)):
        yield {"doing": f"computing in {dtype}"}
        given = (checkpoint, dtype, device, alone, dtype == first)
        tried = _tried(partial(_pass, *given))
        yield {"dtype": dtype, "automatic": dtype == first, **tried}
    for backend in PREFERENCE[device.type]:
        for dtype in _ATTENTION_FORMATS:
            yield {"doing": f"computing attention {backend} in {dtype}"}
            tried = _tried(partial(_attention, backend, dtype, device))
            yield {"attention": backend, "in": dtype, **tried}


def _tried(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `compute` returns, or what is wrong as ``fault``."""
    try:
        return compute()
    except Exception as error:  # torch, CUDA and compilers have many
        return {"fault": "out of memory" if out_of_memory(error) else first_line(error)}


def _pass(
    checkpoint: Checkpoint, dtype: str, device: torch.device, expected: torch.Tensor, fused: bool
) -> dict[str, Any]:
    """Return how a pack went through the model as a job would do it, unless it never would."""
    try:
        resolve_dtype(dtype, device)
    except UserError as error:
        return {"lacking": str(error)}
    geometry = checkpoint.geometry
    number = compute_dtype(dtype, geometry)
    backend = select_backend("auto", device, number, geometry.head_dim)
    # What a job would measure besides is kept, where this leaves nothing, and takes a while.
    used = select_kernels(geometry, number, device, TRITON if fused else TORCH)
    model = load_fitting(checkpoint, dtype, used.name, device, remember=False)
    found = _hidden(model, _LENGTHS, backend.name)
    distance = _distance(dtype, found.split(_LENGTHS), expected.split(_LENGTHS))
    why = used.reason if fused and device.type == "cuda" and used.name == TORCH else None
    slow = slow_reason(device, dtype)
    told = {"backend": backend.name, "kernels": used.name, "unfused": why, "slow": slow}
    return told | distance


def _attention(backend: str, dtype: str, device: torch.device) -> dict[str, Any]:
    number = getattr(torch, dtype)
    if reason := unavailable_reason(backend, device, number, _HEAD_DIM):
        return {"lacking": reason}
    shape = (3, sum(_LENGTHS), _HEADS, _HEAD_DIM)
    qkv = torch.arange(math.prod(shape)).sin().reshape(shape).to(number)
    bounds = torch.tensor([0, *accumulate(_LENGTHS)], dtype=torch.int32)
    q, k, v = qkv.to(device)
    found = attend(backend, q, k, v, Sequences(bounds.to(device), max(_LENGTHS), _LENGTHS))
    q, k, v = qkv.float()
    expected = attend("sdpa", q, k, v, Sequences(bounds, max(_LENGTHS), _LENGTHS))
    return _distance(dtype, [found.float().cpu()], [expected])


@torch.inference_mode()
def _hidden(model: PackedESM2, lengths: list[int] | tuple[int, ...], backend: str) -> torch.Tensor:
    """Return the token vectors (T, width), float32 on the CPU, of a pack of these lengths."""
    device = model.embed_tokens.weight.device
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = (positions * 7 % (VOCABULARY - 10) + 4).to(device)
    hidden = model.forward_packed(
        *(tokens, positions.to(device), bounds, max(lengths)), attention=backend, lengths=lengths
    )
    return hidden.float().cpu()


def _distance(dtype: str, found: Any, expected: Any) -> dict[str, Any]:
    """Return the largest relative L2 distance of a sequence, or a fault if it is too large."""
    pairs = zip(found, expected, strict=True)
    far = float(torch.stack([(x - y).norm() / y.norm() for x, y in pairs]).max())
    if not far <= AUTO_LIMITS[dtype]:  # nor is NaN
        return {"fault": f"off by {far:.1g}, at most {AUTO_LIMITS[dtype]:g} is right"}
    return {"relative_l2": far}


KINDS: dict[str, Callable[[Sequence[str]], Facts]] = {
    "machine": lambda given: machine(*given),
    "gpu": lambda given: gpu(*given),
    "checkpoints": lambda given: checkpoints(*given),
}
