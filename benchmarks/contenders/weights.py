"""fair-esm's weights by Hugging Face's names: the way back from `packedesm.esm2.tensor_names`."""

from typing import Any

import torch

from packedesm.alphabet import MASK, PAD
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.hugging_face import HUGGING_FACE_SETTINGS
from packedesm.esm2.tensor_names import HUGGING_FACE_LAYER_NAMES, HUGGING_FACE_NAMES


def hugging_face_settings(geometry: Geometry) -> dict[str, Any]:
    """Return what config.json says of a published ESM-2."""
    settings = {key: expected for key, (expected, _default) in HUGGING_FACE_SETTINGS.items()}
    return settings | {
        "num_hidden_layers": geometry.layers,
        "hidden_size": geometry.width,
        "num_attention_heads": geometry.heads,
        "intermediate_size": 4 * geometry.width,
        "max_position_embeddings": 1026,
        "mask_token_id": MASK,
        "pad_token_id": PAD,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def hugging_face_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return fair-esm's weights by Hugging Face's names."""
    modules = {ours: theirs for theirs, ours in HUGGING_FACE_NAMES.items()}
    of_layer = {ours: theirs for theirs, ours in HUGGING_FACE_LAYER_NAMES.items()}
    named = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("layers."):
            _, layer, inside = module.split(".", 2)
            module = f"encoder.layer.{layer}.{of_layer[inside]}"
        else:
            module = modules[module]
        named[f"{module}.{kind}"] = tensor
    return named


def hugging_face_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the head for language modelling of a whole checkpoint by Hugging Face's names."""
    prefix = "encoder.lm_head."
    head = {
        name.removeprefix(prefix): tensor.clone()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    head["decoder.weight"] = head.pop("weight")
    return {f"lm_head.{name}": tensor for name, tensor in head.items()}
