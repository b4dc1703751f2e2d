"""Read and write checkpoints in fair-esm's layout: a .pt file of settings and tensors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packedesm.errors import UserError
from packedesm.esm2.geometry import VOCABULARY, Geometry, checked_geometry
from packedesm.esm2.tensor_names import HEADS, without_prefix
from packedesm.esm2.weights import (
    ROTARY_BASE,
    Weights,
    check_are_tensors,
    stored_formats,
    tensor_shapes,
    unique,
)
from packedesm.files import atomic_path


def is_published(content: Any) -> bool:
    """Tell whether a file's content has the layout of the published ones: with settings."""
    return isinstance(content, Mapping) and "cfg" in content


def load(path: Path, content: Any) -> Weights:
    """Return the encoder in the content of a file that `is_published`.

    Raises
    ------
    UserError
        If it is no ESM-2 checkpoint.
    """
    try:
        settings = content["cfg"]["model"]
        geometry = checked_geometry(
            path,
            settings.encoder_layers,
            settings.encoder_embed_dim,
            settings.encoder_attention_heads,
        )
        token_dropout = settings.token_dropout
        named = unique((without_prefix(name), x) for name, x in content["model"].items())
    except ValueError as error:
        raise UserError(f"{path}: {error}; download or copy it again") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not an ESM-2 checkpoint in fair-esm's layout (no {error}); ESM-2 files hold "
            "their size in cfg.model, those of older ESM models cannot be used"
        ) from error
    if token_dropout is not True:
        raise UserError(f"{path}: token_dropout is {token_dropout}; ESM-2 models have it on")
    state = {name: tensor for name, tensor in named.items() if not name.startswith(HEADS)}
    heads = {name: tensor for name, tensor in named.items() if name.startswith(HEADS)}
    left_out = tuple(head[:-1] for head in HEADS if any(name.startswith(head) for name in heads))
    check_are_tensors(state, str(path))
    return Weights(geometry, state, f"fair-esm, {stored_formats(state)}", left_out, heads)


def write_random_checkpoint(path: Path, geometry: Geometry, seed: int) -> None:
    """Write a checkpoint with random weights in exactly the layout of the published files.

    The same geometry and seed give the same bytes. Weights are normal with variance 1 / inputs,
    so that activations keep their size from layer to layer; biases and LayerNorms differ from 0
    and 1, so that code that leaves one out gives other vectors. Rotary frequencies are rounded to
    float16, as in the published files.
    """
    generator = np.random.default_rng(seed)
    encoder = {
        name: _random_weight(name, shape, generator)
        for name, shape in tensor_shapes(geometry).items()
    }
    width = geometry.width
    head = {
        "bias": (VOCABULARY,),
        "dense.weight": (width, width),
        "dense.bias": (width,),
        "layer_norm.weight": (width,),
        "layer_norm.bias": (width,),
    }
    weights = {name: _random_weight(name, shape, generator) for name, shape in head.items()}
    write_fair_esm(path, geometry, encoder, weights)


def write_random_regression(path: Path, geometry: Geometry, seed: int) -> None:
    """Write the regression of a contact head with random weights, in fair-esm's layout.

    The same geometry and seed give the same bytes. Weights are normal with standard deviation 4:
    so large that the attention decides what comes out, and not the bias alone.
    """
    generator = np.random.default_rng(seed)
    numbers = generator.standard_normal((1, geometry.layers * geometry.heads), np.float32)
    weights = {
        "contact_head.regression.weight": torch.from_numpy(4 * numbers),
        "contact_head.regression.bias": torch.tensor([-1.0]),
    }
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as handle:
        torch.save({"model": weights}, handle)


def write_fair_esm(
    path: Path,
    geometry: Geometry,
    encoder: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
) -> None:
    """Write a checkpoint in exactly the layout of the published files.

    The same weights give the same bytes. Rotary frequencies are added, rounded to float16 as in
    the published files.

    Parameters
    ----------
    encoder
        Tensors by the names of `packedesm.esm2.model.tensor_shapes`.
    head
        Tensors of the head for language modelling, by the names of
        `packedesm.esm2.heads.LanguageModelHead`.
    """
    weights = {f"encoder.sentence_encoder.{name}": encoder[name] for name in encoder}
    for layer in range(geometry.layers):
        name = f"encoder.sentence_encoder.layers.{layer}.self_attn.rot_emb.inv_freq"
        weights[name] = published_frequencies(geometry)
    weights["encoder.lm_head.weight"] = encoder["embed_tokens.weight"]
    weights |= {f"encoder.lm_head.{name}": tensor for name, tensor in head.items()}
    settings = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=geometry.layers,
        encoder_embed_dim=geometry.width,
        encoder_attention_heads=geometry.heads,
        token_dropout=True,
    )
    # An open file, not a path: torch writes a path's name into the archive.
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as handle:
        torch.save({"cfg": {"model": settings}, "model": weights}, handle)


def published_frequencies(geometry: Geometry) -> torch.Tensor:
    """Return the rotary frequencies (head_dim / 2,) as the published files hold them: float16."""
    exponents = torch.arange(0, geometry.head_dim, 2) / geometry.head_dim
    return (ROTARY_BASE**-exponents).half()


def _random_weight(
    name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> torch.Tensor:
    numbers = torch.from_numpy(generator.standard_normal(shape, np.float32))
    if len(shape) == 1:
        return 0.1 * numbers + ("norm" in name and name.endswith("weight"))
    return numbers if "embed" in name else numbers / shape[1] ** 0.5
