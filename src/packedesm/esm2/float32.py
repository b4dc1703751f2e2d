"""What stays float32 when a model is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn


class Float32Head(nn.Module):
    """A head that stays float32 when the model that it belongs to is cast, as by ``half()``.

    It is small beside the encoder, and half precision would tell few of its numbers apart.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
