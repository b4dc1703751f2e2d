"""What a job settles for itself where the configuration says ``auto``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from packedesm.device.token_budget import fastest_budget
from packedesm.esm2.attention import select_backend
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Geometry

# Tokens per pack: more gain nothing on a CPU, and only leave the caches.
_CPU_BUDGET = 4096
# Peak memory per token over the memory of one token's vector: the residual stream, q, k, v and
# the attention's output, twice 4 D in the feed-forward part, and float32 copies while pooling.
_VECTORS_PER_TOKEN = 24


def choose(options: Mapping[str, Any], geometry: Geometry, device: torch.device) -> dict[str, Any]:
    """Settle what the options leave to ``auto``, but for the token budget: that needs the model."""
    dtype = resolve_dtype(options["dtype"], device)
    selection = select_backend(
        options["attention"], device, getattr(torch, dtype), geometry.head_dim
    )
    return {
        "dtype": dtype,
        "output_dtype": resolve_output_dtype(options["output_dtype"], dtype),
        "outputs": list(options["outputs"]),
        "attention": {"backend": selection.name, "reason": selection.reason},
    }


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """Return the number format that ``dtype: auto`` means on `device`."""
    if dtype != "auto":
        return dtype
    return "float16" if device.type == "cuda" else "float32"


def resolve_output_dtype(output_dtype: str, dtype: str) -> str:
    """Return the number format that ``output_dtype: auto`` means for a computation in `dtype`."""
    if output_dtype != "auto":
        return output_dtype
    return "float32" if dtype == "float32" else "float16"


def token_budget(options: Mapping[str, Any], model: PackedESM2, attention: str) -> int:
    """Return the tokens per pack; ``auto`` depends on `model` and on the device where it is.

    On a GPU it is what `packedesm.device.token_budget` finds, and takes at most half of the free
    memory.
    """
    if options["token_budget"] != "auto":
        return options["token_budget"]
    device = model.embed_tokens.weight.device
    if device.type == "cpu":
        return _CPU_BUDGET
    free, _total = torch.cuda.mem_get_info(device)
    per_token = _VECTORS_PER_TOKEN * model.geometry.width * model.embed_tokens.weight.itemsize
    fitting = free // 2 // per_token // 1024 * 1024
    return fastest_budget(model, attention, max(1024, fitting))
