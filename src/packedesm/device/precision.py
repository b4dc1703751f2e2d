"""How exactly a GPU multiplies: the same everywhere, whatever a container's variables say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# NVIDIA's containers may set these. cuBLAS itself reads the first, over all that a program says;
# torch reads the second when it is imported.
_OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def fix_precision() -> dict[str, bool]:
    """Let GPUs multiply float32 as float32, and add up half precision in float32.

    To be called before CUDA is used: its libraries read the environment once.

    Returns
    -------
    dict
        What torch says of it, for log and report: whether TF32 is used, and whether sums of
        products are rounded to float16, or bfloat16, on the way.
    """
    for name in _OVERRIDES:
        os.environ.pop(name, None)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # The older of torch's two ways sets both; reading them disagree raises.
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_accumulation = False
    return {
        "tf32": matmul.allow_tf32 or cudnn.allow_tf32,
        "float16_sums": (
            matmul.allow_fp16_reduced_precision_reduction or matmul.allow_fp16_accumulation
        ),
        "bfloat16_sums": matmul.allow_bf16_reduced_precision_reduction,
    }


# What `fix_precision` sets for products, and to what. Of float32 torch has an older switch too,
# which must not be read once somebody has set this one.
_PRODUCTS = {
    "fp32_precision": "ieee",
    "allow_fp16_reduced_precision_reduction": False,
    "allow_bf16_reduced_precision_reduction": False,
    "allow_fp16_accumulation": False,
}


@contextmanager
def fixed_precision(device: torch.device) -> Iterator[None]:
    """Let GPUs multiply in the block as `fix_precision` says, and as before after it.

    For a process that others compute in too: it leaves the environment, which was read when CUDA
    was first used, as it is. On a CPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in _PRODUCTS}
    try:
        for name, value in _PRODUCTS.items():
            setattr(matmul, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
