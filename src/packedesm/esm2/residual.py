"""The residual stream of a forward pass: what the products of each layer read of it and add to it.

`Residual` is that of a model in one dtype. `Int8Residual` is that of a model some of whose products
are int8: it is float32 throughout.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packedesm.esm2 import int8
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.int8 import Int8Linear
from packedesm.esm2.linear import linear, linear_add, linear_gelu

if TYPE_CHECKING:
    from packedesm.esm2.contacts import Taps

PRODUCTS = ("qkv", "attention_out", "fc1", "fc2")  # of a layer, by the names of its modules


class Layer(nn.Module):
    """One transformer layer, LayerNorm before each half."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width = geometry.width
        self.heads = geometry.heads
        self.attention_norm = nn.LayerNorm(width)  # eps 1e-5, as fair-esm's
        self.qkv: nn.Module = nn.Linear(width, 3 * width)
        self.attention_out: nn.Module = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1: nn.Module = nn.Linear(width, 4 * width)
        self.fc2: nn.Module = nn.Linear(4 * width, width)


class Stream(Protocol):
    """A residual stream, whatever its products are.

    Attributes
    ----------
    x
        (T, width), what has been added up so far; overwritten by what follows.
    """

    x: Tensor

    @property
    def normed(self) -> Tensor:
        """The LayerNorm of `x` that comes next."""

    def qkv(self, layer: Layer) -> Tensor:
        """Return the projection of the normed stream to q, k and v, (T, 3 width)."""

    def add_attention(self, layer: Layer, attended: Tensor) -> None:
        """Add the projection of what attention gave, (T, width)."""

    def add_feed_forward(self, layer: Layer, norm: nn.LayerNorm) -> None:
        """Add the layer's second half; `norm` is what comes next."""


class Residual:
    """The stream of a model whose weights are all of one dtype.

    Parameters
    ----------
    x
        (T, width), in the dtype of the weights.
    norm
        What comes first.
    fused, fused_gelu
        See `packedesm.esm2.model.PackedESM2`.
    taps
        Of these, `product` does the products.
    """

    def __init__(
        self, x: Tensor, norm: nn.LayerNorm, fused: bool, fused_gelu: bool, taps: Taps | None
    ) -> None:
        self.x, self.normed = x, norm(x)
        self._fused, self._fused_gelu = fused, fused_gelu
        self._product = None if taps is None else taps.product

    def qkv(self, layer: Layer) -> Tensor:
        """Return the projection of the normed stream to q, k and v, (T, 3 width)."""
        return self._multiplied(layer.qkv, self.normed)

    def add_attention(self, layer: Layer, attended: Tensor) -> None:
        """Add the projection of what attention gave, (T, width)."""
        self._add_norm(attended, layer.attention_out, layer.mlp_norm)

    def add_feed_forward(self, layer: Layer, norm: nn.LayerNorm) -> None:
        """Add the layer's second half; `norm` is what comes next."""
        self._add_norm(self._linear_gelu(layer.fc1), layer.fc2, norm)

    def _linear_gelu(self, layer: nn.Module) -> Tensor:
        if self._product is not None:
            return F.gelu(self._multiplied(layer, self.normed))
        one_step = fused_kernels().linear_gelu if self._fused_gelu else linear_gelu
        return one_step(self.normed, _float(layer))

    def _add_norm(self, change: Tensor, layer: nn.Module, norm: nn.LayerNorm) -> None:
        """Add `layer` of `change`; `x` is overwritten unless gradients need it."""
        product = _float(layer)
        if self._fused:
            self.normed = fused_kernels().add_norm(self.x, product(change), norm)
            return
        if self._product is not None:
            self.x = self.x + self._product(product, change)
        else:
            self.x = linear_add(change, product, self.x)
        self.normed = norm(self.x)

    def _multiplied(self, layer: nn.Module, x: Tensor) -> Tensor:
        product = _float(layer)
        return linear(x, product) if self._product is None else self._product(product, x)


class Int8Residual:
    """The stream, float32, of a model some of whose products are int8.

    Parameters
    ----------
    x
        float32 (T, width).
    norm
        What comes first.
    dtype
        Of q, k and v, and of all products that are not int8: float32 or bfloat16.
    """

    def __init__(self, x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.x, self._norm, self._dtype = x, norm, dtype

    @property
    def normed(self) -> Tensor:
        """The LayerNorm of `x` that comes next."""
        return self._norm(self.x)

    def qkv(self, layer: Layer) -> Tensor:
        """Return the projection of the normed stream to q, k and v, (T, 3 width)."""
        return self._of_normed(layer.qkv, self._norm)

    def add_attention(self, layer: Layer, attended: Tensor) -> None:
        """Add the projection of what attention gave, (T, width)."""
        self._add(attended, layer.attention_out)

    def add_feed_forward(self, layer: Layer, norm: nn.LayerNorm) -> None:
        """Add the layer's second half; `norm` is what comes next."""
        self._norm = norm
        if isinstance(layer.fc1, Int8Linear) and isinstance(layer.fc2, Int8Linear):
            int8.feed_forward(self.x, layer.mlp_norm, layer.fc1, layer.fc2)
        else:
            self._add(self._of_normed(layer.fc1, layer.mlp_norm, gelu=True), layer.fc2)

    def _of_normed(self, layer: nn.Module, norm: nn.LayerNorm, gelu: bool = False) -> Tensor:
        if isinstance(layer, Int8Linear):
            return int8.linear(self.x, layer, norm, gelu=gelu, dtype=self._dtype)
        product = linear_gelu if gelu else linear
        return product(norm(self.x).to(self._dtype), cast(nn.Linear, layer))

    def _add(self, change: Tensor, layer: nn.Module) -> None:
        if isinstance(layer, Int8Linear):
            int8.linear_add(change, layer, self.x)
        else:
            self.x.add_(linear(change, cast(nn.Linear, layer)))


def multiply(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's product of `x` (T, K) as (T, N), in the dtype that it has in a pass."""
    if isinstance(layer, Int8Linear):
        return int8.linear(x, layer)
    product = cast(nn.Linear, layer)
    return linear(x.to(product.weight.dtype), product)


def shape(layer: nn.Module) -> tuple[int, int]:
    """Return how many outputs and inputs a product has, (N, K)."""
    if isinstance(layer, Int8Linear):
        return layer.outputs, layer.inputs
    product = cast(nn.Linear, layer)
    return product.out_features, product.in_features


def _float(layer: nn.Module) -> nn.Linear:
    return cast(nn.Linear, layer)  # nothing is int8 here


def fused_kernels() -> ModuleType:
    """Return `packedesm.esm2.triton_kernels`."""
    from packedesm.esm2 import triton_kernels  # here: most installations for a CPU lack Triton

    return triton_kernels
