"""Weights of the heads for language modelling and contacts: which there must be, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from packedesm.errors import UserError
from packedesm.esm2.geometry import VOCABULARY, Geometry
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import DIGESTS, MODELS
from packedesm.esm2.tensor_files import load_archive
from packedesm.esm2.tensor_names import PREFIXES, without_prefix
from packedesm.esm2.weights import EMBEDDINGS, TIED, Weights, check_kinds, check_tied, unique
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD


def head_shapes(head: str, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of a head in fair-esm's layout, without prefix.

    Parameters
    ----------
    head
        `packedesm.outputs.LANGUAGE_HEAD` or `CONTACT_HEAD`.
    """
    width = geometry.width
    if head == CONTACT_HEAD:
        maps = geometry.layers * geometry.heads
        return {"contact_head.regression.weight": (1, maps), "contact_head.regression.bias": (1,)}
    return {
        "lm_head.dense.weight": (width, width),
        "lm_head.dense.bias": (width,),
        "lm_head.layer_norm.weight": (width,),
        "lm_head.layer_norm.bias": (width,),
        "lm_head.bias": (VOCABULARY,),
    }


def checked_heads(
    weights: Weights, needs: Collection[str], path: Path, files: Sequence[Path]
) -> dict[str, torch.Tensor]:
    """Return the weights of the heads in `needs` among those of a checkpoint.

    Parameters
    ----------
    path
        Of the checkpoint, for messages and advice.
    files
        All that the tensors lie in.

    Raises
    ------
    UserError
        If a head is missing or has parts that it should not have, a weight has another shape than
        the encoder's size gives or numbers that are not finite, or the last matrix of the head for
        language modelling is not the embeddings.
    """
    found: dict[str, torch.Tensor] = {}
    for head in sorted(needs):
        shapes = head_shapes(head, weights.geometry)
        here = {n: x for n, x in weights.heads.items() if n.startswith(PREFIXES[head])}
        for name in shapes:
            if name not in here:
                raise UserError(f"{path}: has no {head} ({name} is missing); {_advice(head, path)}")
        if other := sorted(here.keys() - shapes.keys() - {TIED}):
            raise UserError(
                f"{path}: tensor {other[0]} is none of ESM-2's {head}; use the weights of an ESM-2"
            )
        _check(here, shapes, path, files)
        if TIED in here:
            check_tied(here[TIED], weights.state[EMBEDDINGS], path)
        found |= {name: here[name] for name in shapes}
    return found


def read_regression(path: Path, geometry: Geometry) -> dict[str, torch.Tensor]:
    """Return the weights of a contact head from a file of their own, by fair-esm's names.

    Raises
    ------
    UserError
        If it cannot be read, or does not hold those of a model of this size.
    """
    content = load_archive(path)
    try:
        named = unique((without_prefix(name), x) for name, x in content["model"].items())
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: not the regression of a contact head (no {error}); download or copy it again"
        ) from error
    shapes = head_shapes(CONTACT_HEAD, geometry)
    for name in shapes:
        if name not in named:
            raise UserError(f"{path}: tensor {name} is missing; download or copy it again")
    found = {name: named[name] for name in shapes}
    _check(found, shapes, path, [path])
    return found


def _check(
    found: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    files: Sequence[Path],
) -> None:
    check_kinds(found, sum(file.stat().st_size for file in files), str(path))
    for name, shape in shapes.items():
        _check_one(found[name], name, shape, path)


def _check_one(tensor: torch.Tensor, name: str, shape: tuple[int, ...], path: Path) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}; the "
            "head is that of another model"
        )
    if not bool(tensor.isfinite().all()):
        raise UserError(
            f"{path}: tensor {name} has numbers that are not finite; download or copy it again"
        )


def _advice(head: str, path: Path) -> str:
    if head == LANGUAGE_HEAD:
        return (
            "save the model with it (Hugging Face: EsmForMaskedLM), or name a published model, "
            "which `packedesm fetch` brings with all its heads"
        )
    if path.is_dir():
        return (
            "save the model with it (Hugging Face: esm.contact_head.regression.*, which EsmModel "
            "and EsmForMaskedLM have), or name a published model"
        )
    if path.stem in MODELS and path.stem not in DIGESTS:
        return "none was trained for this model; name a published one"
    name = path.stem if path.stem in DIGESTS else "NAME"
    return (
        f"it belongs beside it as {regression_file(path).name}; `packedesm fetch {name}` brings "
        "that of a published model"
    )
