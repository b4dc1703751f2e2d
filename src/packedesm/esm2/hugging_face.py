"""Read checkpoints in Hugging Face's layout: a folder of config.json and safetensors files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from packedesm.errors import UserError, first_line
from packedesm.esm2.geometry import VOCABULARY, Geometry, checked_geometry
from packedesm.esm2.registry import read_small_json, weight_files
from packedesm.esm2.weights import unique

# Hugging Face's names after "esm." and, for layers, "encoder.layer.N."; then fair-esm's.
HUGGING_FACE_NAMES = {
    "embeddings.word_embeddings": "embed_tokens",
    "encoder.emb_layer_norm_after": "emb_layer_norm_after",
}
HUGGING_FACE_LAYER_NAMES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.self.rotary_embeddings": "self_attn.rot_emb",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "LayerNorm": "final_layer_norm",
}
# The heads, a pooler that is never trained, and tables that ESM-2 does not use.
HUGGING_FACE_IGNORED = (
    "lm_head.",
    "classifier.",
    "contact_head.",
    "pooler.",
    "embeddings.position_ids",
    "embeddings.position_embeddings.",
)
# What a configuration must say for the model to be ESM-2, and what holds if it is silent.
HUGGING_FACE_SETTINGS = {
    "model_type": ("esm", None),
    "position_embedding_type": ("rotary", None),
    "vocab_size": (VOCABULARY, None),
    "token_dropout": (True, None),
    "emb_layer_norm_before": (False, False),
    "layer_norm_eps": (1e-5, None),
}


def load(folder: Path) -> tuple[Geometry, dict[str, torch.Tensor]]:
    """Return size and encoder weights, mapped from the files, by fair-esm's names without prefix.

    Tensors whose names are unknown keep them; the heads are left out.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the settings are not those of an ESM-2.
    """
    config = read_small_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: not a configuration; copy it again")
    for key, (expected, default) in HUGGING_FACE_SETTINGS.items():
        if config.get(key, default) != expected:
            raise UserError(
                f"{folder / 'config.json'}: {key} is {config.get(key)!r}, ESM-2 has {expected!r}; "
                "use a folder of an ESM-2 model"
            )
    geometry = checked_geometry(
        folder,
        config.get("num_hidden_layers"),
        config.get("hidden_size"),
        config.get("num_attention_heads"),
    )
    files = weight_files(folder)
    try:
        return geometry, unique(item for file in files for item in _tensors(file))
    except ValueError as error:
        raise UserError(f"{folder}: {error}; copy it again") from error


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a safetensors file that are needed, by our names."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a mapping
                if ours := _fair_esm_name(name):
                    yield ours, tensors.get_tensor(name)
    # Of a damaged header the library raises its own error, or what reading a tensor makes of it.
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); copy it again") from error


def _fair_esm_name(name: str) -> str | None:
    """Return fair-esm's name of a tensor; None if it is not needed, itself if it is unknown."""
    name = name.removeprefix("esm.")
    if name.startswith(HUGGING_FACE_IGNORED):
        return None
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module)
    if layer and layer[2] in HUGGING_FACE_LAYER_NAMES:
        return f"layers.{layer[1]}.{HUGGING_FACE_LAYER_NAMES[layer[2]]}.{kind}"
    return f"{HUGGING_FACE_NAMES[module]}.{kind}" if module in HUGGING_FACE_NAMES else name
