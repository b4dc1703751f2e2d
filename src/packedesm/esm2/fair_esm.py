"""Read and write checkpoints in fair-esm's layout: a .pt file of settings and tensors."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packedesm.errors import UserError, first_line
from packedesm.esm2.geometry import VOCABULARY, Geometry, checked_geometry
from packedesm.esm2.weights import ROTARY_BASE, tensor_shapes, unique
from packedesm.files import atomic_path

# Longest first: the first prefix that fits is cut off.
PREFIXES = ("encoder.sentence_encoder.", "encoder.")


def load(path: Path) -> tuple[Geometry, dict[str, torch.Tensor]]:
    """Return size and encoder weights, mapped from the file, by fair-esm's names without prefix.

    Raises
    ------
    UserError
        If the file cannot be read or is no ESM-2 checkpoint, or as `load_archive`.
    """
    content = load_archive(path)
    try:
        settings = content["cfg"]["model"]
        geometry = checked_geometry(
            path,
            settings.encoder_layers,
            settings.encoder_embed_dim,
            settings.encoder_attention_heads,
        )
        token_dropout = settings.token_dropout
        named = unique((_without_prefix(name), x) for name, x in content["model"].items())
    except ValueError as error:
        raise UserError(f"{path}: {error}; download or copy it again") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not an ESM-2 checkpoint in fair-esm's layout (no {error}); ESM-2 files hold "
            "their size in cfg.model, those of older ESM models cannot be used"
        ) from error
    if token_dropout is not True:
        raise UserError(f"{path}: token_dropout is {token_dropout}; ESM-2 models have it on")
    return geometry, {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith(("lm_head.", "contact_head."))
    }


def _without_prefix(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"text in the name {name!r}")
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def load_archive(path: Path) -> dict[str, Any]:
    """Return the content of a .pt file in fair-esm's layout, its tensors mapped.

    Nothing in the file is executed: only tensors, plain values and `argparse.Namespace` (which
    fair-esm's files hold) are accepted.

    Raises
    ------
    UserError
        If the file cannot be read, or holds anything else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    # A file that is no checkpoint can fail in the unpickler with nearly any exception.
    except Exception as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            raise UserError(
                f"{path}: refused, it holds code ({forbidden[1]}) beside tensors and settings; "
                "take the checkpoint from a source you trust"
            ) from error
        raise UserError(
            f"{path}: not a checkpoint, or damaged ({first_line(error)}); download or copy it again"
        ) from error


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
