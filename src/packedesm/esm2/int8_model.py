"""A model in int8: which of its products bear it is seen on a few proteins, once for all.

They are always the same proteins, so that it is a matter of the weights alone: a protein has the
same vectors whatever else is embedded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from packedesm.errors import UserError
from packedesm.esm2 import int8
from packedesm.esm2.attention import select_backend
from packedesm.esm2.calibration import Calibration, read_calibration, write_calibration
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.int8 import Int8Linear
from packedesm.esm2.proteins import packed_proteins
from packedesm.esm2.quantise import LocalError, Measured, measure, quantise
from packedesm.esm2.residual import PRODUCTS
from packedesm.esm2.threads import one_thread
from packedesm.esm2.ways import Product

if TYPE_CHECKING:
    from packedesm.esm2.model import PackedESM2

# Largest relative L2 distance of a mean vector from that of the model in float32: 0.02 passes. The
# fewer residues, the further off is their mean; among the few proteins are peptides of nine. With
# random weights of 150M the worst of them was at 0.0212, and that of 120 of UniProt, which has 17
# residues, at 0.0228; with `attention_out` left float at 0.0176 and 0.0186.
_BEARS = 0.018
_OPERATIONS = {"qkv": 3, "attention_out": 1, "fc1": 4, "fc2": 4}  # of a layer's twelve
_CPU = torch.device("cpu")


def int8_model(
    load: Callable[[], PackedESM2],
    settled: Collection[str] | None = None,
    weights: str | None = None,
) -> PackedESM2:
    """Return a model in int8, but for those kinds of products that do not bear it.

    Where the mean vectors of a few proteins are too far off, those kinds are left float that cost
    least and bring them near enough.

    Parameters
    ----------
    load
        Gives the model in float32 on the CPU; it is changed.
    settled
        The kinds that are left float, if that is settled.
    weights
        Digest of the weights, by which is remembered what was found out of them; or None.

    Raises
    ------
    UserError
        If there are no kernels for this CPU or size of model, or products of all kinds are too far
        off.
    """
    model = load()
    expect_int8(_CPU, model.geometry)
    # With another number the sums would be rounded otherwise; and there is little to do.
    with one_thread():
        known = read_calibration(weights, model.geometry) if weights else None
        if known is not None:
            return quantise(model, known.ways, known.kept if settled is None else settled)
        measured = measure(model, _inputs(model))
        if settled is not None:
            return quantise(model, measured.ways, settled)
        found = _chosen(model, load, measured)
    if weights:
        write_calibration(
            weights, found.geometry, Calibration(measured.ways, float_products(found))
        )
    return found


def _chosen(model: PackedESM2, load: Callable[[], PackedESM2], measured: Measured) -> PackedESM2:
    inputs = _inputs(model)
    exact = _means(measured.hidden, inputs)
    for kept in _to_try(measured.errors):
        found = quantise(load() if kept else model, measured.ways, kept)
        with torch.inference_mode():
            hidden = found.forward_packed(**_inputs(found))
        off = float((_means(hidden, inputs) - exact).norm(dim=1).div(exact.norm(dim=1)).max())
        if off <= _BEARS:
            return found
    raise UserError(
        f"dtype int8: these weights do not bear it (relative L2 {off:.2g} with only "
        f"{' and '.join(kind for kind in PRODUCTS if kind not in kept)} in int8); say float32, or "
        "bfloat16"
    )


def float_products(model: PackedESM2) -> tuple[str, ...]:
    """Return the kinds of products that are not int8; none where no product is."""
    if model.mixed is None:
        return ()
    layer = model.layers[0]
    return tuple(kind for kind in PRODUCTS if not isinstance(getattr(layer, kind), Int8Linear))


def in_words(model: PackedESM2) -> str:
    """Return which products are int8, and by which kernel; nothing if none is."""
    if model.mixed is None:
        return ""
    name, kept = str(model.mixed).removeprefix("torch."), float_products(model)
    rest = f", but for {' and '.join(kept)} in {name}" if kept else ""
    return f"products in int8 by {int8.kernel()}{rest}; q, k and v in {name}, sums in float32"


def expect_int8(device: torch.device, geometry: Geometry | None = None) -> None:
    """Raise UserError if a device does not compute in int8, or not models of this size."""
    if reason := int8.unavailable_reason(device, *([geometry.width] if geometry else [])):
        other = "float16" if device.type == "cuda" else "float32, or bfloat16"
        raise UserError(f"dtype int8: {reason}; say {other}")


def _to_try(errors: Mapping[Product, LocalError]) -> list[tuple[str, ...]]:
    """Return which kinds may be left float, the fewest operations first.

    Of the two halves of the feed-forward part, which are most of a layer, one at least is int8.
    """
    further = max("fc1", "fc2", key=lambda kind: _worst(errors, kind))
    kinds = ("attention_out", "qkv", further)
    sets = (kept for count in range(len(kinds) + 1) for kept in combinations(kinds, count))
    return sorted(sets, key=lambda kept: sum(map(_OPERATIONS.__getitem__, kept)))


def _worst(errors: Mapping[Product, LocalError], kind: str) -> float:
    found = [error.better.error for product, error in errors.items() if product.kind == kind]
    return max(found) if all(x == x for x in found) else float("inf")


def _means(hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the mean vectors of the proteins, float32 (N, width)."""
    return torch.stack([tokens[1:-1].mean(0) for tokens in hidden.split(inputs["lengths"])])


def _inputs(model: PackedESM2) -> dict[str, Any]:
    backend = select_backend("auto", _CPU, model.compute_dtype, model.geometry.head_dim)
    return packed_proteins() | {"attention": backend.name}
