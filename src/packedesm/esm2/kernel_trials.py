"""Each of `packedesm.esm2.triton_kernels` beside its twin in torch, on a device, in small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from packedesm.alphabet import MASK
from packedesm.esm2.geometry import VOCABULARY, Geometry
from packedesm.esm2.linear import linear_gelu
from packedesm.esm2.steps import TRAINED_KEPT, embed, phases, rotate

_LENGTHS = (3, 40, 5)  # of the sequences of a trial: their tokens fill no block
_FURTHEST = 35_000  # position, beyond the longest protein known

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


class _Trial(NamedTuple):
    """What a kernel is tried with."""

    geometry: Geometry
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    @property
    def cu_seqlens(self) -> torch.Tensor:
        starts = torch.tensor([0, *_LENGTHS]).cumsum(0)
        return starts.to(self.device, torch.int32)

    def normal(self, *shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=self.generator, device=self.device)
        return drawn.to(self.dtype)

    def below(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(
            end, shape, generator=self.generator, device=self.device, dtype=torch.int32
        )  # as packs have them: Triton compiles anew for other integers


@torch.inference_mode()
def agrees(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> bool:
    """Compile the kernel of this name, one of `TRIALS`, and tell whether its twin agrees.

    Raises
    ------
    Exception
        Whatever Triton raises where it cannot compile, or the device cannot run it.
    """
    trial = _Trial(geometry, dtype, device, torch.Generator(device).manual_seed(1))
    return all(
        torch.allclose(found, twin, rtol=_close(found), atol=_close(found))
        for found, twin in TRIALS[name](trial)
    )


def _close(found: torch.Tensor) -> float:
    return 8 * torch.finfo(found.dtype).eps


def _rotate(trial: _Trial) -> Pairs:
    from packedesm.esm2 import triton_kernels

    heads, head_dim = trial.geometry.heads, trial.geometry.head_dim
    qkv = trial.normal(sum(_LENGTHS), 3, heads, head_dim)
    positions = trial.below(_FURTHEST, len(qkv))
    frequencies = torch.logspace(0, -4, head_dim // 2, device=trial.device)
    twin = qkv.clone()
    twin[:, :2] = rotate(qkv[:, :2].clone(), phases(positions, frequencies))
    triton_kernels.rotate_(qkv, positions, frequencies)
    yield qkv, twin


def _add_norm(trial: _Trial) -> Pairs:
    from packedesm.esm2 import triton_kernels

    width = trial.geometry.width
    norm = nn.LayerNorm(width, device=trial.device, dtype=trial.dtype)
    x, change = trial.normal(2, sum(_LENGTHS), width)
    total = x + change
    yield triton_kernels.add_norm(x, change, norm), norm(total)
    yield x, total


def _embed(trial: _Trial) -> Pairs:
    from packedesm.esm2 import triton_kernels

    weight = trial.normal(VOCABULARY, trial.geometry.width)
    input_ids, cu_seqlens = trial.below(VOCABULARY, sum(_LENGTHS)), trial.cu_seqlens
    input_ids[1::4] = MASK
    found = triton_kernels.embed(input_ids, cu_seqlens, max(_LENGTHS), weight, TRAINED_KEPT)
    yield found, embed(input_ids, cu_seqlens, weight)


def _pool(trial: _Trial) -> Pairs:
    from packedesm.esm2 import triton_kernels

    hidden = trial.normal(sum(_LENGTHS), trial.geometry.width)
    sequences = hidden.float().split(_LENGTHS)
    mean = torch.stack([sequence[1:-1].mean(0) for sequence in sequences])
    largest = torch.stack([sequence[1:-1].amax(0) for sequence in sequences])
    twin = torch.stack([mean, largest, torch.stack([sequence[0] for sequence in sequences])])
    for dtype in (torch.float32, torch.float16):
        yield triton_kernels.pool(hidden, trial.cu_seqlens, dtype), twin.to(dtype)


def _linear_gelu(trial: _Trial) -> Pairs:
    from packedesm.esm2 import triton_kernels

    width = trial.geometry.width
    layer = first_product(trial.geometry, trial.dtype, trial.device)
    layer.weight.copy_(trial.normal(4 * width, width) / width**0.5)
    layer.bias.copy_(trial.normal(4 * width))
    x = trial.normal(sum(_LENGTHS), width)
    yield triton_kernels.linear_gelu(x, layer), linear_gelu(x, layer)


def first_product(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """Return a layer of the size of the feed-forward part's first product."""
    width = geometry.width
    return nn.Linear(width, 4 * width, device=device, dtype=dtype).requires_grad_(False)


TRIALS: dict[str, Callable[[_Trial], Pairs]] = {
    "rotate_": _rotate,
    "add_norm": _add_norm,
    "embed": _embed,
    "pool": _pool,
    "linear_gelu": _linear_gelu,
}
