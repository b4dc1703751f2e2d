"""esm-efficient: unpadded ESM-2 on flash_attn, which it cannot be imported without."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from benchmarks.contenders.base import Contender, Task, in_input_order, private_packages

if importlib.util.find_spec("flash_attn") is None:
    raise ImportError("needs flash_attn, which is made for NVIDIA GPUs")
private_packages("esm-efficient")

from esme.esm import ESM2  # noqa: E402

from packedesm import alphabet  # noqa: E402
from packedesm.esm2.checkpoints import load_state  # noqa: E402
from packedesm.packing.packer import plan_packs  # noqa: E402

_NAMES = {
    "self_attn_layer_norm": "self_attn.norm",
    "self_attn.q_proj": "self_attn.q",
    "self_attn.k_proj": "self_attn.k",
    "self_attn.v_proj": "self_attn.v",
    "self_attn.out_proj": "self_attn.out",
    "final_layer_norm": "final.0",
    "fc1": "final.1",
    "fc2": "final.3",
}


def load(task: Task, dtype: str) -> EsmEfficient:
    """Put the checkpoint's weights into esm-efficient's ESM2."""
    geometry, state = load_state(task.checkpoint)
    size = (geometry.layers, geometry.width, geometry.heads)
    model = ESM2(*size, dtype=getattr(torch, dtype))
    renamed = {_renamed(name): tensor for name, tensor in state.items() if "rot_emb" not in name}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    left = [name for name in missing if not name.startswith("lm_head.") and "rot_emb" not in name]
    if left or unexpected:
        raise RuntimeError(f"weights do not fit: {[*left, *unexpected][:3]}")
    return EsmEfficient(model.eval().to(task.device), task.device)


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name


class EsmEfficient(Contender):
    """Packs of sequences, planned as packedesm does it: esm-efficient leaves that to us."""

    packages = ("torch", "esm-efficient", "flash-attn")

    def __init__(self, model: ESM2, device: str) -> None:
        self.model = model
        self.device = device

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Tokenise packs of at most `budget` tokens."""
        lengths = np.array([len(sequence) + 2 for sequence in sequences])
        packs = plan_packs(lengths, budget)
        self.items = packs.items
        self.packs = [self._pack([sequences[i] for i in packs[p]]) for p in range(len(packs))]

    def _pack(self, sequences: list[str]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        ids = [
            [alphabet.CLS, *alphabet.encode(sequence.encode("ascii")).tolist(), alphabet.EOS]
            for sequence in sequences
        ]
        lengths = [len(one) for one in ids]
        cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        return torch.tensor(list(chain.from_iterable(ids))), cu_seqlens, lengths

    @torch.inference_mode()
    def embed(self) -> np.ndarray:
        """Compute all packs; nothing waits for the GPU before the end."""
        pooled = []
        for ids, cu_seqlens, lengths in self.packs:
            ids = ids.to(self.device, non_blocking=True)
            cu_seqlens = cu_seqlens.to(self.device, non_blocking=True)
            hidden = self.model.forward_representation(ids, (cu_seqlens, max(lengths)))
            parts = hidden.float().split(lengths)
            pooled += [part[1:-1].mean(0) for part in parts]
        return in_input_order(torch.stack(pooled).cpu(), self.items)
