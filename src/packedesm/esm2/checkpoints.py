"""Make, check and read checkpoints: fair-esm's .pt files, and Hugging Face folders as those."""

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
from packedesm.esm2 import hugging_face
from packedesm.esm2.download import DIGESTS, digests, fetch
from packedesm.esm2.model import ROTARY_BASE, check_tensors, tensor_shapes
from packedesm.esm2.registry import (
    DEMO,
    MODELS,
    TINY,
    VOCABULARY,
    Geometry,
    checked_geometry,
    locate,
)
from packedesm.files import atomic_path, write_json

TINY_SEED = 1

# Longest first: the first prefix that fits is cut off.
FAIR_ESM_PREFIXES = ("encoder.sentence_encoder.", "encoder.")


def prepare(model: str, folder: str | Path, record_path: Path) -> dict[str, Any]:
    """Make sure that the weights of `model` are there and fit, and record what they are.

    A missing published checkpoint is fetched, the missing untrained one is made.

    Returns
    -------
    dict
        What is written to `record_path` as JSON: model, path, format, layers, width, heads,
        parameters (of the encoder), bytes, sha256 and time of change of the weights,
        meaningless (untrained), for_trial (the small model that ships with the package),
        digest_checked (against the published digest).

    Raises
    ------
    UserError
        If the model is unknown, cannot be fetched, is damaged, or does not fit its settings.
    """
    path = locate(model, folder)
    if model in MODELS and not path.exists():
        if model == TINY:
            write_random_checkpoint(path, MODELS[TINY], TINY_SEED)
        else:
            fetch(model, path.parent)
    files = _weight_files(path)
    published = DIGESTS.get(model, {})
    found = digests(files, {"sha256", *published})
    for algorithm, expected in published.items():
        if found[algorithm] != expected:
            raise UserError(
                f"{path}: {algorithm} is {found[algorithm]}, expected {expected}; "
                f"delete it and run `packedesm fetch {model}`"
            )
    if not published:
        _check_archive(path)
    geometry = read_geometry(path)
    if model in MODELS and geometry != MODELS[model]:
        raise UserError(
            f"{path}: {geometry} is not {model}, which is {MODELS[model]}; "
            "delete the file, or set `model` to its path"
        )
    record = {
        "model": model,
        "path": str(path.absolute()),
        "format": "huggingface" if path.is_dir() else "fair-esm",
        "layers": geometry.layers,
        "width": geometry.width,
        "heads": geometry.heads,
        "parameters": geometry.parameters,
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": found["sha256"],
        "modified_ns": _modified_ns(files),
        "meaningless": path.stem == TINY,
        "for_trial": path.stem == DEMO,
        "digest_checked": bool(published),
    }
    write_json(record_path, record)
    return record


def check_weights(record: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Make sure that the weights are those that `prepare` recorded; return their size and times.

    The digest is only computed anew if the files were touched since.

    Raises
    ------
    UserError
        If they are gone or others.
    """
    path = Path(record["path"])
    try:
        files = _weight_files(path)
        found = (sum(file.stat().st_size for file in files), _modified_ns(files))
    except FileNotFoundError:
        raise UserError(f"{path}: is gone; run the workflow again to make a new record") from None
    if found == (record["bytes"], record.get("modified_ns")):
        return found
    if found[0] != record["bytes"] or digests(files, {"sha256"})["sha256"] != record["sha256"]:
        raise UserError(
            f"{path}: changed since it was checked; if that was meant, run the workflow with "
            "--forcerun checkpoint"
        )
    return found


def _modified_ns(files: list[Path]) -> list[int]:
    return [file.stat().st_mtime_ns for file in files]


def read_geometry(path: Path) -> Geometry:
    """Return the size of the model in `path`; weights are mapped, and not read.

    Raises
    ------
    UserError
        As `load_state`.
    """
    return load_state(path)[0]


def load_state(path: Path) -> tuple[Geometry, dict[str, torch.Tensor]]:
    """Return size and encoder weights of a checkpoint, by fair-esm's names without prefix.

    The tensors are mapped from the file: they take memory when they are used.

    Raises
    ------
    UserError
        If the file is missing, damaged or no ESM-2 checkpoint, if it holds anything but tensors
        and settings, or if its tensors do not fit its settings.
    """
    path = Path(path)
    geometry, state = hugging_face.load(path) if path.is_dir() else _load_fair_esm(path)
    check_tensors({name: tuple(x.shape) for name, x in state.items()}, geometry, str(path))
    return geometry, state


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


def _load_fair_esm(path: Path) -> tuple[Geometry, dict[str, torch.Tensor]]:
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
        tensors = dict(content["model"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not an ESM-2 checkpoint in fair-esm's layout (no {error}); ESM-2 files hold "
            "their size in cfg.model, those of older ESM models cannot be used"
        ) from error
    if token_dropout is not True:
        raise UserError(f"{path}: token_dropout is {token_dropout}; ESM-2 models have it on")
    named = {_without_prefix(name): tensor for name, tensor in tensors.items()}
    return geometry, {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith(("lm_head.", "contact_head."))
    }


def _without_prefix(name: str) -> str:
    for prefix in FAIR_ESM_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a checkpoint."""
    return hugging_face.weight_files(path) if path.is_dir() else [path]


def _check_archive(path: Path) -> None:
    """Raise UserError if the bytes of a .pt archive do not have the checksums stored in it."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); download or copy it again") from error
    if damaged:
        raise UserError(f"{path}: damaged (checksum of {damaged}); download or copy it again")
