"""packedesm's forward pass and pooling: packs that are in memory to vectors that are in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.contenders.base import Contender, Task
from packedesm.device.auto import compute_dtype
from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.errors import UserError
from packedesm.esm2.attention import select_backend
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.int8 import INT8
from packedesm.esm2.int8_model import int8_model
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedPlan
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs


def load(task: Task, dtype: str, attention: str, fused: bool = True) -> Forward:
    """Load the checkpoint; a backend that does not run here is an error that says why."""
    geometry, state = load_state(task.checkpoint)
    device, number_format = torch.device(task.device), compute_dtype(dtype, geometry)
    backend = select_backend(attention, device, number_format, geometry.head_dim).name
    of_dtype = torch.float32 if dtype == INT8 else number_format
    model = PackedESM2.from_fair_esm(state, geometry, of_dtype, device)
    model = int8_model(lambda: model) if dtype == INT8 else model
    kernels = select_kernels(geometry, number_format, device)
    if fused and device.type == "cuda" and kernels.name == "torch":
        raise UserError(kernels.reason)
    model.use_kernels(kernels.name if fused else "torch")
    return Forward(model, device, backend)


class Forward(Contender):
    """Packs through the runner that jobs use."""

    packages = ("torch", "packedesm")

    def __init__(self, model: PackedESM2, device: torch.device, attention: str) -> None:
        self.model, self.device, self.attention = model, device, attention

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Plan the packs and collate them."""
        proteins = [
            Protein(row, sequence.encode("ascii"), [(0, len(sequence))])
            for row, sequence in enumerate(sequences)
        ]
        packs = plan_packs(np.array([len(sequence) + 2 for sequence in sequences]), budget)
        collate = VarlenCollator()
        self.batches = [collate([proteins[i] for i in packs[p]]) for p in range(len(packs))]
        if self.device.type == "cuda":
            self.batches = [batch.pin_memory() for batch in self.batches]
        self.vectors = np.empty((len(sequences), self.model.geometry.width), np.float32)
        self.budget = budget

    def embed(self) -> np.ndarray:
        """Run all packs."""
        dtype = self.model.number_format
        kernels = self.model.kernels
        plan = EmbedPlan(dtype, "float32", ("mean",), self.attention, kernels, self.budget, {})
        runner = AsyncInferenceRunner(self.model, plan, self.device)
        runner.run(self.batches, self._keep)
        return self.vectors

    def _keep(self, pack: FinishedPack) -> None:
        self.vectors[pack.rows] = pack.vectors["mean"]
