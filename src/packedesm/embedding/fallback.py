"""Packs that do not fit into memory, and vectors that half precision cannot hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from packedesm.device.memory import out_of_memory
from packedesm.embedding.pack import not_finite
from packedesm.embedding.pooling import pool
from packedesm.errors import Fault, plural
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedPlan
from packedesm.packing.batch import PackedBatch

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Means:
    """What a `Fallback` needs and is given."""

    load_float32: Callable[[torch.device], PackedESM2]  # the model in float32, on a device
    collate: Callable[[np.ndarray], PackedBatch]  # a pack of these places in the shard, int64 (R,)
    name: Callable[[int], str]  # what to call the record at a place in the shard


class Fallback:
    """The slower ways around: fewer records at once, float32, or the CPU.

    Parameters
    ----------
    means
        Where smaller packs and float32 weights come from, and the records' names.
    device
        The device of the job.
    plan
        What is kept of each protein.
    limit
        Most tokens that fit at once, if an earlier attempt found out.
    remember
        Called with each new limit, to keep it for the attempts to come.
    """

    def __init__(
        self,
        means: Means,
        device: torch.device,
        plan: EmbedPlan,
        *,
        limit: int | None = None,
        remember: Callable[[int], None] = lambda _limit: None,
    ) -> None:
        self.limit = limit
        self._means = means
        self._device = device
        self._plan = plan
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
        return [self._means.collate(half) for half in (batch.rows[:middle], batch.rows[middle:])]

    def alone(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Embed on the CPU, in float32, the one record that does not fit into the GPU's memory.

        Raises
        ------
        Fault
            If the job runs on the CPU already; names the record.
        """
        name, tokens = self._means.name(int(batch.rows[0])), sum(batch.lengths)
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
        first = self._means.name(int(batch.rows[bad[0]]))
        logger.warning(
            "NaN or infinity in vectors of %s, first %s: their pack of %d is computed in float32",
            *(plural(len(bad), "record"), first, len(batch.rows)),
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
            self._models[device] = self._means.load_float32(device)
        batch = batch.to(device)
        hidden = self._models[device].forward_packed(**batch.inputs)
        vectors = pool(hidden, batch, self._plan.outputs, self._plan.output_dtype)
        return {output: tensor.cpu() for output, tensor in vectors.items()}
