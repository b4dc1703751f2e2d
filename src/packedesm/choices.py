"""What a job settles for itself where the configuration says ``auto``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from packedesm.attention import select_backend
from packedesm.models import Geometry

# Tokens per pack. On a CPU more tokens gain nothing and only leave the caches; on a GPU the
# matrix products are at full speed from about 16,384 tokens on.
_CPU_BUDGET = 4096
_GPU_BUDGET = 32768
# Peak memory per token over the memory of one token's vector: the residual stream, q, k, v and
# the attention's output, twice 4 D in the feed-forward part, and float32 copies while pooling.
_VECTORS_PER_TOKEN = 24


def choose(options: Mapping[str, Any], geometry: Geometry, device: torch.device) -> dict[str, Any]:
    """Settle everything that the options leave to ``auto``."""
    dtype = resolve_dtype(options["dtype"], device)
    selection = select_backend(
        options["attention"], device, getattr(torch, dtype), geometry.head_dim
    )
    return {
        "dtype": dtype,
        "output_dtype": resolve_output_dtype(options["output_dtype"], dtype),
        "outputs": list(options["outputs"]),
        "attention": {"backend": selection.name, "reason": selection.reason},
        "token_budget": resolve_token_budget(options["token_budget"], geometry, dtype, device),
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


def resolve_token_budget(
    token_budget: int | str, geometry: Geometry, dtype: str, device: torch.device
) -> int:
    """Return the tokens per pack; ``auto`` uses at most half of a GPU's free memory."""
    if token_budget != "auto":
        return int(token_budget)
    if device.type == "cpu":
        return _CPU_BUDGET
    free, _total = torch.cuda.mem_get_info(device)
    per_token = _VECTORS_PER_TOKEN * geometry.width * getattr(torch, dtype).itemsize
    fitting = free // 2 // per_token // 1024 * 1024
    return max(1024, min(_GPU_BUDGET, fitting))
