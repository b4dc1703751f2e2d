"""The memory that tensors take while they are alive."""

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class LiveMemory:
    """The storages of the tensors that it was told of, as long as something holds them.

    Attributes
    ----------
    most
        Most bytes that they took at once.
    """

    def __init__(self) -> None:
        self.most = 0
        self._storages: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def note(self, tensors: Iterable[torch.Tensor], place: str = "") -> None:
        """Take note of tensors that an operator has given, and of where they were made."""
        alive = self._alive()
        for storage in (tensor.untyped_storage() for tensor in tensors):
            alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes(), place))
        self.most = max(self.most, sum(size for _, size, _ in alive.values()))

    def places(self) -> set[str]:
        """Return where the tensors were made that are alive now."""
        return {place for *_, place in self._alive().values()}

    def _alive(self) -> dict[int, tuple[StorageWeakRef, int, str]]:
        # What is gone goes first: its address may be that of the next.
        self._storages = {at: x for at, x in self._storages.items() if not x[0].expired()}
        return self._storages
