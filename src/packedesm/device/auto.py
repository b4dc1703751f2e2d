"""What a job resolves for itself where the configuration says ``auto``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from packedesm.device.cpu import slow_reason
from packedesm.device.hardware import check_dtype
from packedesm.device.memory import out_of_memory
from packedesm.device.token_budget import Workload, fastest_budget
from packedesm.errors import Fault, UserError
from packedesm.esm2.attention import Selection, select_backend, unavailable_reason
from packedesm.esm2.checkpoints import read, reading_weights
from packedesm.esm2.contacts import BYTES_PER_PAIR
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.int8 import INT8
from packedesm.esm2.int8_model import expect_int8, float_products, in_words, int8_model
from packedesm.esm2.kernels import float_dtype
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Checkpoint
from packedesm.options import EmbedOptions, EmbedPlan
from packedesm.outputs import check_layers, heads_of

NAMED = "named in the configuration"
_KINDS = {"cuda": "GPU", "cpu": "CPU"}

# Tokens per pack: more gain nothing on a CPU, and only leave the caches.
_CPU_BUDGET = 4096
# Peak memory per token over the memory of one token's vector: 11 in the forward pass without fused
# kernels (tests/fake_cuda/test_ratchet.py); 8 while residues of windows are averaged, in float32.
_VECTORS_PER_TOKEN = 16


def load(
    checkpoint: Checkpoint,
    options: EmbedOptions,
    device: torch.device,
    workload: Workload,
    float_products: Collection[str] | None = None,
) -> tuple[EmbedPlan, PackedESM2]:
    """Resolve the options on `device`, and return the plan and the model, which is there.

    Parameters
    ----------
    workload
        What the token budget is to be the fastest for.
    float_products
        Kinds of products that are not int8, if that is settled; of no matter in other formats.

    Raises
    ------
    UserError
        If the options do not fit the device, or the checkpoint does not load.
    Fault
        If the weights do not fit into the device's memory.
    """
    dtype, reason = resolve_dtype(options.dtype, device)
    check_layers(options.arrays, checkpoint.geometry.layers)
    geometry, heads = checkpoint.geometry, heads_of(options.arrays)
    ways = select_ways(options.attention, geometry, compute_dtype(dtype, geometry), device)
    kernels = ways.kernels.name
    model = load_fitting(checkpoint, dtype, kernels, device, heads, float_products=float_products)
    return settle(model, ways, options, workload, dtype_reason=reason), model


class Ways(NamedTuple):
    """How a model computes in one number format on one device."""

    attention: Selection
    kernels: Selection


def select_ways(
    attention: str, geometry: Geometry, dtype: torch.dtype, device: torch.device
) -> Ways:
    """Return how a model of this size computes; UserError if `attention` cannot be used."""
    backend = select_backend(attention, device, dtype, geometry.head_dim)
    return Ways(backend, select_kernels(geometry, dtype, device))


def settle(
    model: PackedESM2,
    ways: Ways,
    options: EmbedOptions,
    workload: Workload,
    *,
    dtype_reason: str,
) -> EmbedPlan:
    """Return the plan of a model that is there, in the number format that it has.

    Parameters
    ----------
    ways
        For this format and the device that the model is on.
    workload
        What the token budget is to be the fastest for.
    dtype_reason
        Why the format was chosen.
    """
    dtype = model.number_format
    output_dtype, output_reason = resolve_output_dtype(options.output_dtype, dtype)
    longest = options.length.max_length if "contacts" in options.arrays else 0
    budget, budget_reason = resolve_token_budget(
        options.token_budget, model, ways.attention.name, workload, BYTES_PER_PAIR * longest
    )
    return EmbedPlan(
        dtype=dtype,
        output_dtype=output_dtype,
        arrays=options.arrays,
        attention=ways.attention.name,
        kernels=ways.kernels.name,
        token_budget=budget,
        reasons={
            "dtype": "; ".join(filter(None, (dtype_reason, in_words(model)))),
            "output_dtype": output_reason,
            "attention": ways.attention.reason,
            "kernels": ways.kernels.reason,
            "token_budget": budget_reason,
        },
        float_products=float_products(model),
    )


def unfit_reason(
    plan: EmbedPlan, kind: str, geometry: Geometry, device: torch.device
) -> str | None:
    """Return why `device` cannot go on with a plan that was settled on another, or None.

    Parameters
    ----------
    kind
        Of the device that the plan was settled on, ``cuda`` or ``cpu``.
    """
    if device.type != kind:
        return f"it is not a {_KINDS[kind]}"
    try:
        _expect_format(device, plan.dtype, geometry)
    except UserError as error:
        return str(error)
    dtype = compute_dtype(plan.dtype, geometry)
    if reason := unavailable_reason(plan.attention, device, dtype, geometry.head_dim):
        return f"attention {plan.attention}: {reason}"
    if plan.kernels != "torch":
        found = select_kernels(geometry, dtype, device, demanded=plan.kernels)
        if found.name != plan.kernels:
            return f"kernels {plan.kernels}: {found.reason}"
    return None


def load_fitting(
    checkpoint: Checkpoint,
    dtype: str,
    kernels: str,
    device: torch.device,
    heads: Collection[str] = (),
    *,
    float_products: Collection[str] | None = None,
    remember: bool = True,
) -> PackedESM2:
    """Return the model of a job, with its kernels and heads; Fault if memory does not hold it.

    Parameters
    ----------
    float_products
        As `load` takes them.
    remember
        Whether what is found out of int8 is kept in the user's cache folder, and taken from there.
    """
    read_as = "float32" if dtype == INT8 else dtype
    from_file = partial(load_model, checkpoint, getattr(torch, read_as), device, heads)
    with _weights_fit(checkpoint, read_as):
        if dtype == INT8:
            weights = checkpoint.facts()["sha256"] if remember else None
            model = int8_model(from_file, float_products, weights)
        else:
            model = from_file()
    model.use_kernels(kernels)
    return model


def _expect_format(device: torch.device, dtype: str, geometry: Geometry | None = None) -> None:
    """Raise UserError if `device` does not compute in `dtype`, or not models of this size."""
    check_dtype(device, dtype)
    if dtype == INT8:
        expect_int8(device, geometry)


def compute_dtype(dtype: str, geometry: Geometry) -> torch.dtype:
    """Return torch's dtype of the attention of a model that computes in `dtype`."""
    return float_dtype(geometry.head_dim) if dtype == INT8 else getattr(torch, dtype)


def resolve_dtype(dtype: str, device: torch.device) -> tuple[str, str]:
    """Return the number format of the computation on `device`, and why."""
    if dtype != "auto":
        _expect_format(device, dtype)
        slow = slow_reason(device, dtype)
        return dtype, f"{NAMED}; {slow}" if slow else NAMED
    if device.type == "cuda":
        return "float16", "chosen automatically on a GPU"
    return "float32", "chosen automatically on a CPU"


def resolve_output_dtype(output_dtype: str, dtype: str) -> tuple[str, str]:
    """Return the number format of the files for a computation in `dtype`, and why."""
    if output_dtype != "auto":
        return output_dtype, NAMED
    found = "float32" if dtype in ("float32", "float64") else "float16"
    return found, f"chosen automatically for a computation in {dtype}"


def resolve_token_budget(
    token_budget: int | str,
    model: PackedESM2,
    attention: str,
    workload: Workload,
    besides: int = 0,
) -> tuple[int, str]:
    """Return the tokens per pack, and why; ``auto`` depends on `model` and the device it is on.

    On a GPU it is what `packedesm.device.token_budget` finds, and takes at most half of the free
    memory.

    Parameters
    ----------
    besides
        Bytes per token that are kept of a pack until its pass is through.
    """
    if isinstance(token_budget, int):
        return token_budget, NAMED
    weight = model.embed_tokens.weight
    if weight.device.type == "cpu":
        return _CPU_BUDGET, "chosen automatically: larger packs leave a CPU's caches"
    free, _total = torch.cuda.mem_get_info(weight.device)
    per_token = _VECTORS_PER_TOKEN * model.geometry.width * weight.itemsize + besides
    fitting = free // 2 // per_token // 1024 * 1024
    budget = fastest_budget(model, attention, max(1024, fitting), workload)
    reason = "measured on this kind of GPU with packs of such proteins, within its free memory"
    return budget, f"chosen automatically: {reason}"


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    needs: Collection[str] = (),
) -> PackedESM2:
    """Return the model of a checkpoint, with those of its heads that are needed and no others.

    Parameters
    ----------
    needs
        Heads, see `packedesm.outputs.needs`.

    Raises
    ------
    UserError
        If it does not load, is not as recorded, or lacks a head.
    """
    with reading_weights(checkpoint) as path:
        weights = read(path, checkpoint.base, needs, checkpoint.regression)
        return PackedESM2.from_fair_esm(
            weights.state, weights.geometry, dtype, device, weights.heads
        )


@contextmanager
def _weights_fit(checkpoint: Checkpoint, dtype: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        size = checkpoint.geometry.parameters * getattr(torch, dtype).itemsize / 1e9
        raise Fault(
            f"{checkpoint.path}: its weights, {size:.1f} GB in {dtype}, do not fit into the "
            "device's memory; take a smaller model or a larger device"
        ) from error
