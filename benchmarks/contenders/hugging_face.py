"""Hugging Face's EsmModel with torch's scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benchmarks.contenders.base import PaddedContender, Task
from benchmarks.contenders.weights import hugging_face_settings, hugging_face_state
from packedesm.alphabet import PAD
from packedesm.esm2.checkpoints import load_state


def load(task: Task, dtype: str) -> HuggingFace:
    """Put the checkpoint's weights into an EsmModel."""
    return HuggingFace(task.device, build(transformers.EsmModel, task, dtype, "sdpa"))


class HuggingFace(PaddedContender):
    """Padded batches through a model with the interface of EsmModel."""

    packages = ("torch", "transformers")

    def __init__(self, device: str, model: torch.nn.Module) -> None:
        super().__init__(device)
        self.model = model

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last representation."""
        return self.model(ids, attention_mask=(ids != PAD).long()).last_hidden_state


def build(model_class: type, task: Task, dtype: str, attention: str, **settings: Any):
    """Return a `model_class` (EsmModel or its like) with the checkpoint's weights."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    geometry, state = load_state(task.checkpoint)
    config = transformers.EsmConfig(**hugging_face_settings(geometry), **settings)
    model = model_class.from_pretrained(
        None,
        config=config,
        state_dict=hugging_face_state(state),
        attn_implementation=attention,
        torch_dtype=getattr(torch, dtype),
        add_pooling_layer=False,
    )
    # Some versions compute them anew, some round them to the model's dtype; both cost accuracy.
    frequencies = state["layers.0.self_attn.rot_emb.inv_freq"].float()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = frequencies.clone()
    return model.eval().to(task.device)
