"""Packs that do not fit into memory, and vectors that half precision cannot hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from packedesm.embedding.pooling import pool
from packedesm.errors import Fault
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.model import PackedESM2
from packedesm.packing.collator import PackedBatch, VarlenCollator
from packedesm.packing.dataset import SequenceDataset

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

# Out of memory has an exception of its own, but not where cuBLAS or the C library runs out.
_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "can't allocate memory",
)


def out_of_memory(error: Exception) -> bool:
    """Tell whether `error` says that the memory of the device is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def not_finite(vectors: dict[str, np.ndarray], residues: np.ndarray) -> np.ndarray:
    """Return which records of a pack have NaN or infinity in a vector: int64, their places.

    Parameters
    ----------
    vectors
        Per output (R, D), for ``residue`` (P, D).
    residues
        int (R,), embedded residues of each record.
    """
    bad = [np.empty(0, np.int64)]
    for output, array in vectors.items():
        lines = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if output == "residue":
            lines = np.searchsorted(np.cumsum(residues), lines, side="right")
        bad.append(lines)
    return np.unique(np.concatenate(bad))


class Rescue:
    """The slower ways around: fewer records at once, float32, or the CPU.

    Parameters
    ----------
    dataset
        Where the records of a pack are read again, to make smaller packs of them.
    checkpoint
        Where the weights are read again, once, in float32.
    device
        The device of the job.
    outputs, output_dtype
        As the runner's.
    name
        Returns what to call a record, from its place in the shard, when speaking to the user.
    limit
        Most tokens that fit at once, if an earlier attempt found out.
    remember
        Called with each new limit, to keep it for the attempts to come.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        checkpoint: Path,
        device: torch.device,
        *,
        outputs: list[str],
        output_dtype: torch.dtype,
        name: Callable[[int], str],
        limit: int | None = None,
        remember: Callable[[int], None] = lambda _limit: None,
    ) -> None:
        self.limit = limit
        self._dataset = dataset
        self._checkpoint = checkpoint
        self._device = device
        self._outputs = outputs
        self._output_dtype = output_dtype
        self._name = name
        self._remember = remember
        self._models: dict[torch.device, PackedESM2] = {}
        self._lock = threading.Lock()  # the main thread and the writer's both come here

    def fits(self, tokens: int) -> bool:
        """Tell whether so many tokens may fit at once: nothing is known against it."""
        return self.limit is None or tokens <= self.limit

    def lower(self, tokens: int) -> None:
        """Take note that `tokens` tokens at once are too many."""
        self.limit = min(tokens // 2, self.limit or tokens)
        logger.warning(
            "out of memory with %d tokens: at most %d go at once from now on", tokens, self.limit
        )
        self._remember(self.limit)

    def halves(self, batch: PackedBatch) -> list[PackedBatch]:
        """Return the records of a pack as two smaller packs."""
        middle = len(batch.rows) // 2
        rows = (batch.rows[:middle], batch.rows[middle:])
        return [VarlenCollator()(self._dataset.__getitems__(half.tolist())) for half in rows]

    def alone(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Embed on the CPU, in float32, the one record that does not fit into the GPU's memory.

        Raises
        ------
        Fault
            If the job runs on the CPU already; names the record.
        """
        name, tokens = self._name(int(batch.rows[0])), sum(batch.lengths)
        if self._device == CPU:
            raise Fault(
                f"{name}: {tokens} tokens do not fit into memory, even alone; use a machine with "
                "more, or long_sequences truncate or window"
            )
        logger.warning("%s: does not fit into the GPU's memory; embedded on the CPU", name)
        with self._lock:
            return self._embed(batch, CPU)

    def in_float32(self, batch: PackedBatch, bad: np.ndarray) -> dict[str, torch.Tensor]:
        """Embed a pack again in float32, on the job's device or else the CPU.

        Parameters
        ----------
        bad
            Places in the pack of the records whose vectors are not finite.

        Raises
        ------
        Fault
            If their vectors are not finite in float32 either; names the first of them.
        """
        first = self._name(int(batch.rows[bad[0]]))
        logger.warning(
            "%d records, first %s, have NaN or infinity: their pack of %d is computed in float32",
            *(len(bad), first, len(batch.rows)),
        )
        with self._lock:
            vectors = self._on_device_or_cpu(batch)
        if len(not_finite({o: x.numpy() for o, x in vectors.items()}, batch.residues)):
            raise Fault(
                f"{first}: its vectors hold NaN or infinity, in float32 too; try "
                "output_dtype=float32, and check the model"
            )
        return vectors

    def _on_device_or_cpu(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        try:
            return self._embed(batch, self._device)
        except Exception as error:
            if self._device == CPU or not out_of_memory(error):
                raise
        self._models.pop(self._device, None)
        logger.warning("float32 does not fit into the GPU's memory; the pack goes to the CPU")
        return self._embed(batch, CPU)

    @torch.inference_mode()
    def _embed(self, batch: PackedBatch, device: torch.device) -> dict[str, torch.Tensor]:
        if device not in self._models:
            geometry, state = load_state(self._checkpoint)
            self._models[device] = PackedESM2.from_fair_esm(
                state, geometry, torch.float32, device=device
            )
        batch = batch.to(device)
        hidden = self._models[device].forward_packed(**batch.inputs)
        vectors = pool(hidden, batch, self._outputs, self._output_dtype)
        return {output: tensor.cpu() for output, tensor in vectors.items()}
