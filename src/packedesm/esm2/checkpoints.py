"""Make sure that a model's weights are there, whole and the same, and read them in any layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from packedesm.errors import UserError
from packedesm.esm2 import fair_esm, hugging_face
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import (
    DEMO,
    DIGESTS,
    MODELS,
    TINY,
    Checkpoint,
    locate,
    modified_ns,
    weight_files,
)
from packedesm.esm2.weights import check_tensors
from packedesm.files import digests

TINY_SEED = 1


def prepare(model: str, folder: str | Path) -> Checkpoint:
    """Make sure that the weights of `model` are there and fit; return what they are.

    A missing published checkpoint is fetched, the missing untrained one is made.

    Parameters
    ----------
    model, folder
        As `packedesm.esm2.registry.locate` takes them.

    Raises
    ------
    UserError
        If the model is unknown, cannot be fetched, is damaged, or does not fit its settings.
    """
    path = locate(model, folder)
    if model in MODELS and not path.exists():
        _provide(model, path)
    files = weight_files(path)
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
    return Checkpoint(
        model=model,
        path=str(path.absolute()),
        format="huggingface" if path.is_dir() else "fair-esm",
        geometry=geometry,
        bytes=sum(file.stat().st_size for file in files),
        sha256=found["sha256"],
        modified_ns=modified_ns(files),
        untrained=path.stem == TINY,
        demo=path.stem == DEMO,
        digest_checked=bool(published),
    )


def _provide(model: str, path: Path) -> None:
    """Make or download the weights of a model that has a name."""
    if model == TINY:
        fair_esm.write_random_checkpoint(path, MODELS[TINY], TINY_SEED)
        return
    from packedesm.esm2.download import fetch  # here: few runs download, and all read this file

    fetch(model, path.parent)


def check_weights(checkpoint: Checkpoint) -> tuple[int, tuple[int, ...]]:
    """Make sure that the weights are those that `prepare` recorded; return their size and times.

    The digest is only computed anew if the files were touched since.

    Raises
    ------
    UserError
        If they are gone or others.
    """
    path = Path(checkpoint.path)
    try:
        files = weight_files(path)
        found = (sum(file.stat().st_size for file in files), modified_ns(files))
    except FileNotFoundError:
        raise UserError(f"{path}: is gone; run the workflow again to make a new record") from None
    if found == (checkpoint.bytes, checkpoint.modified_ns):
        return found
    if found[0] != checkpoint.bytes or digests(files, {"sha256"})["sha256"] != checkpoint.sha256:
        raise UserError(
            f"{path}: changed since it was checked; if that was meant, run the workflow with "
            "--forcerun checkpoint"
        )
    return found


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
    geometry, state = (hugging_face if path.is_dir() else fair_esm).load(path)
    check_tensors({name: tuple(x.shape) for name, x in state.items()}, geometry, str(path))
    return geometry, state


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
