"""What each backend of attention on a GPU needs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from packedesm.errors import UserError
from packedesm.esm2.torch_operators import EFFICIENT

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Needs:
    """What a backend needs.

    Attributes
    ----------
    dtypes
        What it computes in, each with the smallest CUDA compute capability.
    generations
        Major capabilities that it has kernels for; None is all.
    head_dims
        Tells whether it has kernels for heads of so many numbers.
    missing
        Returns what is not installed and what to do, or None; UserError if it is there and broken.
    """

    dtypes: Mapping[torch.dtype, tuple[int, int]]
    generations: range | None
    head_dims: Callable[[int], bool]
    missing: Callable[[], str | None]

    def unmet(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return why the backend cannot be used, or None."""
        if device.type != "cuda":
            return f"it needs an NVIDIA GPU, not a {device.type.upper()}"
        if dtype not in self.dtypes:
            return f"it computes in {' or '.join(map(_name, self.dtypes))}, not {_name(dtype)}"
        if not self.head_dims(head_dim):
            return f"it has no kernel for heads of {head_dim} numbers"
        capability = torch.cuda.get_device_capability(device)
        known = self.generations is None or capability[0] in self.generations
        if not known or capability < self.dtypes[dtype]:
            found = ".".join(map(str, capability))
            return f"it does not run on a GPU of compute capability {found} in {_name(dtype)}"
        return self.missing()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _missing_function(module: str, function: str, install: str) -> str | None:
    root = importlib.util.find_spec(module.partition(".")[0])
    # Without an __init__.py it is a namespace folder that another distribution
    # (flash_attn.cute) left behind, not the library.
    if root is None or root.origin is None or importlib.util.find_spec(module) is None:
        return f"{module} is not installed; {install}"
    try:
        getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"attention: {module} is installed but does not work ({cause}); "
            "repair or remove it, or choose attention sdpa"
        ) from error
    return None


def _unknown_operator() -> str | None:
    if EFFICIENT.is_as_expected:
        return None
    return f"torch {torch.__version__} has changed its operator {EFFICIENT.name}"


_AMPERE = dict.fromkeys(HALF, (8, 0))


def _of_flash_attention_2(head_dim: int) -> bool:
    return head_dim % 8 == 0 and head_dim <= 256


GPU = {
    "torch_varlen": Needs(
        dtypes=_AMPERE,
        generations=None,
        head_dims=_of_flash_attention_2,
        missing=partial(
            _missing_function,
            *("torch.nn.attention.varlen", "varlen_attn", "install torch 2.10 or newer"),
        ),
    ),
    "memory_efficient": Needs(
        # dispatch_cutlassF in cutlassF.h; float32 is multiplied as three TF32 products where there
        # are such (OpMultiplyAddFastF32 in gemm_kernel_utils.h), which is as exact as float32.
        dtypes={torch.float32: (5, 0), torch.float16: (5, 0), torch.bfloat16: (8, 0)},
        generations=range(5, 13),
        head_dims=lambda head_dim: head_dim % 8 == 0,
        missing=_unknown_operator,
    ),
    "flash_attn": Needs(
        dtypes=_AMPERE,
        generations=None,
        head_dims=_of_flash_attention_2,
        missing=partial(
            _missing_function,
            *("flash_attn", "flash_attn_varlen_func", "pip install 'packedesm[flash]'"),
        ),
    ),
    "fa3": Needs(
        dtypes={torch.bfloat16: (9, 0)},
        generations=range(9, 10),  # FlashAttention-3 is written for Hopper alone
        head_dims=(64, 96, 128, 192, 256).__contains__,
        missing=partial(
            _missing_function,
            *("fa3_fwd_interface", "flash_attn_varlen_func", "pip install fa3-fwd"),
        ),
    ),
}
