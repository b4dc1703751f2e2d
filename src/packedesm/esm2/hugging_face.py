"""Read checkpoints in Hugging Face's layout: a folder of config.json and files of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from packedesm.errors import UserError
from packedesm.esm2.geometry import VOCABULARY, Geometry, checked_geometry
from packedesm.esm2.model_files import read_small_json, weight_files
from packedesm.esm2.other_models import other_settings
from packedesm.esm2.tensor_files import tensors_of
from packedesm.esm2.tensor_names import renamed
from packedesm.esm2.weights import ROTARY_BASE, Weights, spread, stored_formats, unique

# What a configuration must say for the model to be ESM-2, and what holds if it is silent.
HUGGING_FACE_SETTINGS = {
    "model_type": ("esm", None),
    "position_embedding_type": ("rotary", None),
    "vocab_size": (VOCABULARY, None),
    "token_dropout": (True, None),
    "emb_layer_norm_before": (False, False),
    "layer_norm_eps": (1e-5, None),
    "mask_token_id": (32, 32),
}
# What to do about a model of ESM-2's kind that computes something else.
_ADVICE = {
    "vocab_size": "its tokens are not ESM-2's (SaProt has 446); if tokens were only added, call "
    "model.resize_token_embeddings(33) and save it again",
    "token_dropout": "its embeddings are not scaled as ESM-2's; if it was trained as an ESM-2, set "
    "token_dropout to true there",
}


def load(folder: Path) -> Weights:
    """Return the encoder of a folder that transformers wrote, in any of its versions since 4.30.

    Tensors of the encoder whose names are unknown keep them; the heads stand apart.

    Raises
    ------
    UserError
        If a file is missing or damaged, holds anything but tensors, or the settings are not those
        of an ESM-2.
    """
    config = read_small_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: not a configuration; copy it again")
    geometry = _geometry(folder, config)
    files = weight_files(folder)
    try:
        tensors = unique(item for file in files for item in tensors_of(file).items())
        found = renamed(tensors, str(folder))
        state = spread(unique((ours, tensors[name]) for name, ours in found.ours), geometry)
        heads = unique((ours, tensors[name]) for name, ours in found.heads)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; copy it again") from error
    if (base := config.get("rope_theta", ROTARY_BASE)) != ROTARY_BASE and not any(
        name.endswith("inv_freq") for name in state
    ):
        raise UserError(
            f"{folder / 'config.json'}: rope_theta is {base!r:.60}, and the rotary frequencies "
            "that follow from it (inv_freq) are not among the weights; save it with transformers 5"
        )
    return Weights(geometry, state, _layout(config, files, state), found.left_out, heads)


def _geometry(folder: Path, config: Mapping[str, Any]) -> Geometry:
    file = folder / "config.json"
    if other := other_settings(config):
        raise UserError(f"{folder}: is {other[0]}; {other[1]}")
    for key, (expected, default) in HUGGING_FACE_SETTINGS.items():
        found = config.get(key, default)
        if found != expected and not (found is None and default is not None):
            advice = _ADVICE.get(key, "use a folder of an ESM-2 model")
            raise UserError(f"{file}: {key} is {found!r:.60}, ESM-2 has {expected!r}; {advice}")
    return checked_geometry(
        folder,
        config.get("num_hidden_layers"),
        config.get("hidden_size"),
        config.get("num_attention_heads"),
    )


def _layout(config: Mapping[str, Any], files: list[Path], state: Mapping[str, torch.Tensor]) -> str:
    """Return what was read, in words."""
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    parts = [
        f"Hugging Face transformers {str(config.get('transformers_version', ''))[:20]}".strip(),
        *([first[:60]] if isinstance(first, str) else []),
        stored_formats(state),
        files[0].name if len(files) == 1 else f"{len(files)} files",
    ]
    return ", ".join(parts)
