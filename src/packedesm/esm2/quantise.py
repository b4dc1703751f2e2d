"""A model's products made int8, each in the way that its own numbers bear best.

A product has one scale for each token: a channel far larger than the others leaves them few of its
127 steps. SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) divides such channels by a factor, which
the weights take over. That helps one product and harms another, so both are measured. What is wrong
in all tokens alike goes into the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from packedesm.esm2 import int8, kernels
from packedesm.esm2.contacts import Taps
from packedesm.esm2.int8 import Int8Linear
from packedesm.esm2.linear import linear
from packedesm.esm2.residual import PRODUCTS, Layer
from packedesm.esm2.ways import Product, Way

if TYPE_CHECKING:
    from packedesm.esm2.model import PackedESM2

_FAINTEST = 0.01  # of the mean: a channel that slept in the sample is not taken for a smaller one


class LocalError(NamedTuple):
    """What int8 does to one product without smoothing and with it."""

    plain: Way
    smoothed: Way

    @property
    def better(self) -> Way:
        """The way with the smaller error; the plain one where they cannot be compared."""
        return self.smoothed if self.smoothed.error < self.plain.error else self.plain


def unavailable_reason(model: PackedESM2) -> str | None:
    """Return why the products of a model cannot be int8, or None."""
    weight = model.embed_tokens.weight
    if weight.dtype != torch.float32:
        return f"it is made of float32 weights, not {str(weight.dtype).removeprefix('torch.')}"
    return int8.unavailable_reason(weight.device, model.geometry.width)


class Measured(NamedTuple):
    """What int8 would do to the products of a model, on a sample.

    Attributes
    ----------
    hidden
        What the model gives of the sample, float32 (T, width).
    """

    errors: dict[Product, LocalError]
    hidden: Tensor

    @property
    def ways(self) -> dict[Product, Way]:
        """The better way of each product."""
        return {product: error.better for product, error in self.errors.items()}


@torch.inference_mode()
def measure(model: PackedESM2, inputs: Mapping[str, Any]) -> Measured:
    """Return what int8 would do to every product, on a sample.

    Parameters
    ----------
    model
        In float32, on the CPU.
    inputs
        What `PackedESM2.forward_packed` takes: one pack. A few hundred tokens are enough, of
        proteins that differ.
    """
    names = {id(layer): product for product, layer in _products(model)}
    found: dict[Product, LocalError] = {}

    def product(layer: nn.Linear, x: Tensor) -> Tensor:
        exact = linear(x, layer)
        size = (exact - layer.bias).norm(dim=1).clamp_min(1e-20)  # of zeros nothing is lost

        def way(smoothing: Tensor | None) -> Way:
            difference = int8.linear(x, Int8Linear(layer, smoothing)) - exact
            mean = difference.mean(0).nan_to_num(0, 0, 0)  # one broken token spoils no other
            error = (difference - mean).norm(dim=1) / size
            return Way(float(error.square().mean().sqrt()), smoothing, layer.bias - mean)

        smoothing = _smoothing(x, layer.weight)
        found[names[id(layer)]] = LocalError(way(None), way(smoothing))
        return exact

    return Measured(found, model.forward_packed(**inputs, taps=Taps(product=product)))


def quantise(
    model: PackedESM2,
    ways: Mapping[Product, Way],
    keep_float: Callable[[Product], bool] | Collection[str] = (),
) -> PackedESM2:
    """Make the products of a model int8, each in its way; return it, changed.

    Float weights of these products are given up. Those that are kept become bfloat16 where this CPU
    has attention for that, and stay float32 elsewhere; so do q, k and v.

    Parameters
    ----------
    model
        In float32, on the CPU.
    ways
        Of each product that shall be int8, see `measure`.
    keep_float
        Kinds of products that shall not, or what tells of one product whether it shall not.

    Raises
    ------
    ValueError
        If some of the model's products are int8 already.
    RuntimeError
        If there are no kernels here; see `unavailable_reason`.
    """
    if model.mixed is not None:
        raise ValueError("some of the model's products are int8 already")
    if reason := unavailable_reason(model):
        raise RuntimeError(f"int8 cannot be used: {reason}")
    kept = keep_float if callable(keep_float) else lambda product: product.kind in keep_float
    model.mixed = kernels.float_dtype(model.geometry.head_dim)
    for product, layer in _products(model):
        if kept(product):
            layer.to(model.mixed)
        else:
            way = ways[product]
            layer.bias.data = way.bias
            quantised = Int8Linear(layer, way.smoothing)
            setattr(model.layers[product.layer], product.kind, quantised)
    return model


def _products(model: PackedESM2) -> Iterator[tuple[Product, nn.Linear]]:
    for number, layer in enumerate(cast(Iterable[Layer], model.layers)):
        for kind in PRODUCTS:
            yield Product(number, kind), getattr(layer, kind)


def _smoothing(x: Tensor, weight: Tensor) -> Tensor:
    """Return what SmoothQuant multiplies inputs by, with its alpha at 1/2."""
    inputs, weights = (_largest(rows) for rows in (x, weight))
    return (weights / inputs).sqrt()


def _largest(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(0)
    return largest.clamp_min(_FAINTEST * float(largest.mean())).clamp_min(1e-20)
