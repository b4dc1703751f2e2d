"""Linear layers, with what follows them, in one step where the CPU's library can.

torch hands float32 products on a CPU to MKL, which uses AVX-512 on Intel's processors only. oneDNN,
which torch uses for half precision, uses it on AMD's too: with the matrices of the 35M and 150M
models, 1.7 to 2.6 times as fast (two cores of an AMD EPYC with AVX-512). It also takes the addition
of a bias, GELU or a residual into the product. It is called through the operators that
`torch.compile` emits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
)
# Half precision not where ONEDNN_MAX_CPU_ISA keeps it from AVX-512: it would refuse.
_HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return `layer` of `x` (T, K) as (T, N)."""
    if not _by_onednn(x, layer.weight):
        return layer(x)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")


def linear_gelu(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return the exact (erf) GELU of `layer` of `x` (T, K) as (T, N)."""
    if not _by_onednn(x, layer.weight):
        product = layer(x)
        return F.gelu(product) if product.requires_grad else torch.ops.aten.gelu_(product)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "none")


def linear_add(x: torch.Tensor, layer: nn.Linear, residual: torch.Tensor) -> torch.Tensor:
    """Return `residual` (T, N) + `layer` of `x` (T, K).

    `residual` may be overwritten unless gradients need it.
    """
    if _by_onednn(x, layer.weight):
        operator = torch.ops.mkldnn._linear_pointwise.binary
        return operator(x, residual, layer.weight, layer.bias, "add")
    if _adds_in_place(x, layer.weight):
        return residual.add_(layer.bias).addmm_(x, layer.weight.T)
    change = layer(x)
    return residual + change if change.requires_grad else residual.add_(change)


def _adds_in_place(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether torch's product shall be added up where the residual lies, in float32.

    That spares a pass over both: with AVX2, 3 to 6% of the product of attention. Half precision
    would be rounded once more, and a GPU has kernels of its own.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return not _differentiated(x, weight)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether oneDNN shall multiply.

    It has no gradients here.
    """
    if x.device.type != "cpu":
        return False
    has = _HAS_BFLOAT16 if x.dtype == torch.bfloat16 else HAS_ONEDNN
    return has and x.dtype in (torch.float32, torch.bfloat16) and not _differentiated(x, weight)


def _differentiated(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
