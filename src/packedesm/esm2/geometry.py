"""The size of an ESM-2 model, and the arithmetic that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packedesm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

VOCABULARY = 33  # tokens of fair-esm's ESM-1b alphabet, which ESM-2 uses


@dataclass(frozen=True)
class Geometry:
    """Size of an ESM-2 model: transformer layers, width of a vector, attention heads."""

    layers: int
    width: int
    heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Weights of the encoder, without the heads for language modelling and contacts.

        Per layer 12 width² + 13 width: q, k, v and output 4 width² + 4 width, the two feed-forward
        matrices 8 width² + 5 width, two LayerNorms 4 width. Besides, the embeddings and the last
        LayerNorm.
        """
        per_layer = 12 * self.width**2 + 13 * self.width
        return VOCABULARY * self.width + self.layers * per_layer + 2 * self.width

    def flops(self, lengths: Sequence[int] | np.ndarray, times: int | np.ndarray = 1) -> float:
        """Return the floating-point operations of one pass over sequences of `lengths` tokens.

        Or over so many `times` each.

        Per layer 24 width² for each token (2 operations for each of the 12 width² weights of its
        matrices) and 4 width T² for a sequence of T tokens (the products q kᵀ and softmax v).
        Element-wise work is not counted.
        """
        import numpy as np  # here: what lists the models needs none

        tokens = np.asarray(lengths, np.float64)
        matrices = 24 * self.width**2 * (times * tokens).sum()
        attention = 4 * self.width * (times * np.square(tokens)).sum()
        return float(self.layers * (matrices + attention))


def checked_geometry(source: Path, layers: Any, width: Any, heads: Any) -> Geometry:
    """Return the size that a checkpoint states.

    Raises
    ------
    UserError
        If no model can have it.
    """
    numbers = {"layers": layers, "width": width, "heads": heads}
    for what, number in numbers.items():
        if type(number) is not int or number < 1:
            raise UserError(f"{source}: number of {what} is {number!r}, not a whole number above 0")
    if width % (2 * heads):
        raise UserError(
            f"{source}: width {width} does not split into {heads} heads of even width; "
            "its settings do not fit its weights"
        )
    return Geometry(layers, width, heads)
