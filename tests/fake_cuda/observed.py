"""What is seen of the operators that run on the made-up GPU: devices, numbers, bytes, memory."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_cuda.attention import check_operator
from tests.fake_cuda.memory import LiveMemory

# Neither view nor kernel: they reserve memory, or are views that do not say so.
_NO_KERNELS = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"}
_PRODUCTS = {"addmm", "mm", "bmm", "linear_gelu"}


class Watched(TorchDispatchMode):
    """Assert that all tensors of all operators below it stand on `device`.

    And what kernels of attention check. A copy to the host waits for the device, so does one from
    there unless it was pinned: neither may happen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asks a fake tensor where it stands
            return func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        check_operator(func, arguments)
        given = [*_tensors((args, kwargs))]
        result = func(*args, **kwargs)
        written = [arguments[x.name] for x in func._schema.arguments if _is_write(x)]
        made = [*_tensors((result, written))]
        for tensor in (*given, *made):
            assert tensor.device == self.device, f"{func} on {tensor.device}"
        self.see(func, given, made)
        return result

    def see(self, func, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        """Look at an operator that ran, at the tensors that it took, and gave or overwrote."""


class Counted(Watched):
    """Count operators, bytes and memory.

    Under `torch.no_grad` it sees leaves: operators of which each is a kernel, or nothing on a GPU.

    Attributes
    ----------
    counts
        How often each operator ran that is no view.
    moved
        Bytes of what those read and write outside products and attention, by numbers per token.
    peak
        Most bytes that were alive at once of what was made below it.
    """

    def __init__(self, device: torch.device, tokens: int) -> None:
        super().__init__(device)
        self.tokens = tokens
        self.counts: Counter[str] = Counter()
        self.moved: Counter[int] = Counter()
        self._memory = LiveMemory()

    def see(self, func, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        self._see_memory(given, made)
        name = func._schema.name.partition("::")[2]
        if not _is_view(func) and name not in _NO_KERNELS:
            self.counts[name] += 1
            if name not in _PRODUCTS and "attention" not in name:
                self._see_bytes(given, made)

    @property
    def peak(self) -> int:
        return self._memory.most

    def _see_memory(self, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        before = {tensor.untyped_storage()._cdata for tensor in given}
        self._memory.note(x for x in made if x.untyped_storage()._cdata not in before)

    def _see_bytes(self, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        for tensor in (*_distinct(given), *_distinct(made)):
            if tensor.numel() % self.tokens == 0:  # others are weights
                self.moved[tensor.numel() // self.tokens] += tensor.nbytes


def _distinct(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    seen = set()
    for tensor in tensors:
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape)
        if key not in seen:
            yield tensor
        seen.add(key)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _is_write(value) -> bool:
    """Tell of an argument whether it is overwritten."""
    return value.alias_info is not None and value.alias_info.is_write


def _is_view(func) -> bool:
    returns = func._schema.returns
    return any(value.alias_info is not None and not _is_write(value) for value in returns)
