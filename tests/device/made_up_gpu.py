"""A made-up GPU that keeps the time of its products and the memory of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packedesm.device import timing
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.weights import tensor_shapes
from tests.fake_cuda.memory import LiveMemory

GB = 10**9
SMALL = Geometry(layers=1, width=64, heads=2)
DEFAULT = "default"
# Operators that multiply, and the place of the first factor among their arguments.
_PRODUCTS = {
    torch.ops.aten.linear.default: 0,
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
}


def empty_model(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    geometry: Geometry = SMALL,
) -> PackedESM2:
    """Return a model whose weights are zero."""
    state = {name: torch.zeros(shape) for name, shape in tensor_shapes(geometry).items()}
    return PackedESM2.from_fair_esm(state, geometry, dtype, device)


class MadeUpGpu(TorchDispatchMode):
    """Context manager: fake tensors on ``cuda``, and stand-ins for what torch.cuda is asked.

    Parameters
    ----------
    free
        Bytes of memory that torch says are free.
    seconds
        Returns how long a product of (T, K) and (K, N) takes, given (T, K, N). Nothing else takes
        time, and no other clock runs.

    Attributes
    ----------
    now
        Seconds of work so far.
    products
        The shape (T, K, N) of each product.
    streams
        Names of the streams that products were queued on.
    peak_bytes
        Most memory that tensors took at once.
    emptied
        For each time that the cache was emptied, the streams on which tensors were still there that
        had been made on them.
    """

    def __init__(
        self,
        monkeypatch,
        *,
        free: int = GB,
        seconds: Callable[[tuple[int, int, int]], float] = lambda _shape: 1e-3,
    ) -> None:
        super().__init__()
        self.seconds = seconds
        self.now = 0.0
        self.products: list[tuple[int, int, int]] = []
        self.streams: set[str] = set()
        self.emptied: list[set[str]] = []
        self._memory = LiveMemory()
        self._stream = DEFAULT
        self._fake = FakeTensorMode()
        for name, stand_in in {
            "Stream": lambda _device: SimpleNamespace(name="another", wait_stream=lambda _other: 0),
            "current_stream": lambda _device: SimpleNamespace(name=self._stream),
            "stream": self._on,
            "synchronize": lambda _device: None,
            "empty_cache": lambda: self.emptied.append(self._memory.places()),
            "mem_get_info": lambda _device: (free, 2 * free),
            "get_device_name": lambda _device: "a made-up GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def __enter__(self):
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._fake.__exit__(*exception)

    def __torch_dispatch__(self, operator, _types, arguments=(), options=None):
        if operator in _PRODUCTS:
            x, weight = arguments[_PRODUCTS[operator] :][:2]
            shape = (*x.shape, weight.numel() // x.shape[1])
            self.products.append(shape)
            self.streams.add(self._stream)
            self.now += self.seconds(shape)
        result = operator(*arguments, **options or {})
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self._memory.note((x for x in tensors if x.device.type == "cuda"), place=self._stream)
        return result

    @property
    def peak_bytes(self) -> int:
        return self._memory.most

    @contextmanager
    def _on(self, stream):
        before, self._stream = self._stream, stream.name
        yield
        self._stream = before
