"""Read a model's tensors as torch.save(model.state_dict()) or a training wrote them, alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from packedesm.errors import UserError
from packedesm.esm2.geometry import Geometry, checked_geometry
from packedesm.esm2.registry import MODELS
from packedesm.esm2.tensor_names import renamed
from packedesm.esm2.weights import (
    Weights,
    check_are_tensors,
    frequency_name,
    spread,
    stored_formats,
    unique,
)

# Where trainings keep the tensors of a model: Lightning, and what is usual in a loop of one's own.
_PLACES = ("state_dict", "model_state_dict", "model")


def load(path: Path, content: Any) -> Weights:
    """Return the encoder in the content of a .pt, .ckpt or .bin file that does not state its size.

    The size follows from the shapes, the number of heads from the rotary frequencies or, where
    there are none, from the published model of this size. The names may have any prefix, and may
    be fair-esm's or Hugging Face's.

    Raises
    ------
    UserError
        If it holds no ESM-2, or more than one, or does not tell its number of heads.
    """
    place, tensors = _tensors(path, content)
    found = renamed(tensors, str(path))
    try:
        state = unique((ours, tensors[name]) for name, ours in found.ours)
        heads = unique((ours, tensors[name]) for name, ours in found.heads)
        check_are_tensors(state, str(path))
        geometry = _geometry(path, state)
        state = spread(state, geometry)
    except ValueError as error:
        raise UserError(f"{path}: {error}; save one model alone") from error
    spelling = (
        "Hugging Face's" if any("encoder.layer." in n for n, _ in found.ours) else "fair-esm's"
    )
    parts = [
        f"state dict in {spelling} names",
        *([f"in {place!r}" + _trainer(content)] if place else []),
        *([f"prefix {found.prefix[:60]!r}"] if found.prefix else []),
        stored_formats(state),
    ]
    return Weights(geometry, state, ", ".join(parts), found.left_out, heads)


def _tensors(path: Path, content: Any) -> tuple[str | None, Mapping[str, Any]]:
    """Return where in the content the named tensors are, and these."""
    advice = "name a file that holds the tensors of an ESM-2 by their names"
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds {type(content).__name__}, not named tensors; {advice}")
    if "param_groups" in content and "state" in content:
        raise UserError(f"{path}: is the state of an optimizer without its model; {advice}")
    for place in _PLACES:
        if isinstance(content.get(place), Mapping):
            return place, content[place]
    return None, content


def _trainer(content: Mapping[str, Any]) -> str:
    version = content.get("pytorch-lightning_version")
    return f" of Lightning {version[:20]}" if isinstance(version, str) else ""


def _geometry(path: Path, state: Mapping[str, torch.Tensor]) -> Geometry:
    layers = len({found[1] for name in state if (found := re.match(r"layers\.(\d+)\.", name))})
    shape = state["embed_tokens.weight"].shape
    width = shape[1] if len(shape) == 2 else 0
    names = [frequency_name(layer) for layer in ("*", 0)]
    stored = [state[name].numel() for name in names if name in state]
    if stored:
        heads = width // max(1, 2 * stored[0])
        return checked_geometry(path, layers, width, heads)
    for published in MODELS.values():
        if (layers, width) == (published.layers, published.width):
            return published
    raise UserError(
        f"{path}: does not say how many attention heads its {layers} layers of width {width} have "
        "(it has no rotary frequencies, inv_freq); save a folder with save_pretrained() instead"
    )
