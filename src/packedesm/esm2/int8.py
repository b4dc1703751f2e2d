"""Linear layers in int8 on a CPU, with the steps around them: `int8.cpp`.

Weights have a scale for each output, activations one for each token, both the largest number / 127.
Sums are exact. The kernels were compiled when packedesm was installed, once for AVX-512 with VNNI
and once for AVX2; both give the same bits.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from packedesm.esm2.compiled import load_compiled

INT8 = "int8"  # among the number formats of a computation
_VNNI, _AVX2 = "packedesm.esm2._int8_vnni", "packedesm.esm2._int8_avx2"
# By torch's name of what the CPU can do: what may be used, the fastest first.
_LIBRARIES = {"AVX512": (_VNNI, _AVX2), "AVX2": (_AVX2,)}
_SOURCE = Path(__file__).with_suffix(".cpp")
_LANES = 16  # numbers of inputs and outputs that the kernels take at once
_FLOAT32, _BFLOAT16, _ADDED = range(3)  # what becomes of a product
_WAYS = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16}


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("panels", "start", "scale", "bias", "smoothing")),
        *((name, c_int) for name in ("inputs", "outputs")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_float))


class Int8Linear(nn.Module):
    """A linear layer (N, K) whose weights are int8, in the order of this machine's kernel.

    What it holds is no part of a state dict: another machine's kernel would read it wrongly.

    Attributes
    ----------
    panels
        int8 (N K,): the weights.
    start
        int32 (N,): what the sum of each output begins at.
    scale, bias
        float32 (N,): what each output is multiplied by, and what is added then.
    smoothing
        float32 (K,), or None: what inputs are multiplied by before they are quantised; the weights
        were divided by it (SmoothQuant: Xiao et al. 2023, arXiv:2211.10438).
    """

    panels: Tensor
    start: Tensor
    scale: Tensor
    bias: Tensor
    smoothing: Tensor | None

    def __init__(self, layer: nn.Linear, smoothing: Tensor | None = None) -> None:
        """Quantise a layer of float32 on the CPU, K and N multiples of 16.

        Raises
        ------
        ValueError
            If it is another, or `smoothing` is not float32 (K,).
        RuntimeError
            If there are no kernels here; see `unavailable_reason`.
        """
        super().__init__()
        outputs, inputs = layer.weight.shape
        if reason := unavailable_reason(layer.weight.device, inputs, outputs):
            raise RuntimeError(f"int8 cannot be used: {reason}")
        weight = _checked("weight", layer.weight.detach(), (outputs, inputs))
        divisor = None
        if smoothing is not None:
            smoothing = _checked("smoothing", smoothing, (inputs,)).clone()
            divisor = smoothing.reciprocal()
        bias = _checked("bias", layer.bias.detach(), (outputs,)).clone()
        panels = torch.empty(outputs * inputs, dtype=torch.int8)
        start, scale = torch.empty(outputs, dtype=torch.int32), torch.empty(outputs)
        held = {"panels": panels, "start": start, "scale": scale, "bias": bias}
        for name, tensor in {**held, "smoothing": smoothing}.items():
            self.register_buffer(name, tensor, persistent=False)
        self.kernel = kernel()
        _library().pack(
            *(weight.data_ptr(), None if divisor is None else divisor.data_ptr()),
            *(inputs, outputs),
            *(x.data_ptr() for x in (panels, start, scale)),
            torch.get_num_threads(),
        )

    @property
    def inputs(self) -> int:
        """K, numbers of a token that are multiplied."""
        return self.panels.numel() // self.outputs

    @property
    def outputs(self) -> int:
        """N, numbers of a token that result."""
        return len(self.scale)

    def _product(self) -> _Product:
        if self.kernel != kernel():
            raise ValueError(f"these weights are for the kernel {self.kernel}, not {kernel()}")
        _checked("scale", self.scale, (self.outputs,))  # else the module was cast or moved
        smoothing = None if self.smoothing is None else self.smoothing.data_ptr()
        pointers = (x.data_ptr() for x in (self.panels, self.start, self.scale, self.bias))
        return _Product(*pointers, smoothing, self.inputs, self.outputs)


def linear(
    x: Tensor,
    layer: Int8Linear,
    norm: nn.LayerNorm | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return `layer` of `x`, or of `norm` of it, as `dtype` (T, N).

    A token with a number that is not finite becomes NaN throughout.

    Parameters
    ----------
    x
        float32 or bfloat16 (T, K).
    gelu
        Whether the exact GELU of the product is returned, to 8e-7 of it.
    dtype
        float32 or bfloat16.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit.
    """
    if dtype not in _WAYS:
        raise ValueError(f"int8 gives float32 or bfloat16, not {dtype}")
    out = torch.empty(len(x), layer.outputs, dtype=dtype)
    _linear(x, layer, norm, gelu, out, _WAYS[dtype])
    return out


def linear_add(x: Tensor, layer: Int8Linear, residual: Tensor) -> Tensor:
    """Return `residual` (T, N), float32, which is overwritten, + `layer` of `x` (T, K).

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit.
    """
    _check_no_gradients(_checked("residual", residual, (len(x), layer.outputs)))
    _linear(x, layer, None, False, residual, _ADDED)
    return residual


def feed_forward(x: Tensor, norm: nn.LayerNorm, first: Int8Linear, second: Int8Linear) -> Tensor:
    """Return `x` (T, K), float32, which is overwritten, + second(gelu(first(norm(x)))).

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit.
    """
    if (first.inputs, first.outputs) != (second.outputs, second.inputs):
        raise ValueError("the second product does not lead back from the first")
    _check_no_gradients(_checked("x", x, (len(x), first.inputs)))
    _library().feed_forward(
        *(x.data_ptr(), len(x), _norm(norm, first.inputs)),
        *(first._product(), second._product(), torch.get_num_threads()),
    )
    return x


def unavailable_reason(device: torch.device, *widths: int) -> str | None:
    """Return why products of these numbers of inputs and outputs cannot be int8, or None."""
    if device.type != "cpu":
        return "its kernels run on a CPU"
    if torch.backends.cpu.get_cpu_capability() not in _LIBRARIES:
        return "its kernels need a CPU with AVX-512 or AVX2"
    if _library() is None:
        return (
            "its kernels were not compiled when packedesm was installed, or from other sources; "
            "run make"
        )
    if odd := [width for width in widths if width % _LANES]:
        return f"its kernels take widths in multiples of {_LANES}, not {odd[0]}"
    return None


def kernel() -> str:
    """Return which kernel this CPU uses, for log and report."""
    return _library().kernel().decode()


def source_digest() -> str:
    """Return the digest of the source of the kernel that this CPU uses."""
    return _library().source_digest().decode()


@cache
def _library() -> Any:
    """Return the fastest library that this CPU can run, None if there is none."""
    for name in _LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ()):
        library = load_compiled(name, _SOURCE)
        if library is not None and library.runs_here():
            return _declared(library)
    return None


def _declared(library: Any) -> Any:
    """Tell `library` the types of its functions."""
    library.kernel.restype = ctypes.c_char_p
    library.pack.argtypes = [*[c_void_p] * 2, *[c_int] * 2, *[c_void_p] * 3, c_int]
    library.linear.argtypes = [
        *(c_void_p, c_int, c_int64),  # tokens: bfloat16 or not, how many
        *(POINTER(_Norm), POINTER(_Product), c_int),  # with GELU or without
        *(c_void_p, c_int, c_int),  # out, what becomes of it, threads
    ]
    norm_and_products = [POINTER(_Norm), POINTER(_Product), POINTER(_Product)]
    library.feed_forward.argtypes = [c_void_p, c_int64, *norm_and_products, c_int]
    for function in (library.pack, library.linear, library.feed_forward):
        function.restype = None
    return library


def _linear(
    x: Tensor, layer: Int8Linear, norm: nn.LayerNorm | None, gelu: bool, out: Tensor, way: int
) -> None:
    if x.dtype not in _WAYS or x.shape != (len(x), layer.inputs) or x.device.type != "cpu":
        raise ValueError(f"int8 takes float32 or bfloat16 (T, {layer.inputs}) on the CPU")
    _check_no_gradients(x)
    x = x.contiguous()
    _library().linear(
        *(x.data_ptr(), x.dtype == torch.bfloat16, len(x)),
        *(None if norm is None else _norm(norm, layer.inputs), layer._product(), gelu),
        *(out.data_ptr(), way, torch.get_num_threads()),
    )


def _norm(norm: nn.LayerNorm, width: int) -> _Norm:
    pair = [_checked(f"norm.{x}", getattr(norm, x), (width,)) for x in ("weight", "bias")]
    for tensor in pair:
        _check_no_gradients(tensor)
    return _Norm(*(tensor.data_ptr() for tensor in pair), norm.eps)


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    fits = tensor.dtype == torch.float32 and tensor.shape == shape
    if not fits or tensor.device.type != "cpu" or not tensor.is_contiguous():
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}, not float32 {shape}, contiguous on the CPU")
    return tensor


def _check_no_gradients(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("int8 has no gradients; use float32")
