"""The products of a model by name, and how each is made int8."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Product(NamedTuple):
    """One product of a model."""

    layer: int  # from 0
    kind: str  # of `PRODUCTS`


class Way(NamedTuple):
    """One way to make a product int8, and what that does to it, its input being exact.

    Attributes
    ----------
    error
        Relative L2 error of the product without its bias, root mean square over the tokens; NaN
        where something is not finite.
    smoothing
        float32 (K,), what `Int8Linear` takes, or None.
    bias
        float32 (N,): the product's, less the mean error of the sample (bias correction: Nagel et
        al. 2019, arXiv:1906.04721). Means over residues keep only that part.
    """

    error: float
    smoothing: Tensor | None
    bias: Tensor
