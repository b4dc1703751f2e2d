"""Make sure that a model's weights are there, whole and the same, and read them in any layout."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from packedesm.errors import Damaged, UserError
from packedesm.esm2 import fair_esm, hugging_face
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import (
    DEMO,
    DIGESTS,
    MODELS,
    TINY,
    Checkpoint,
    check_published,
    locate,
    model_files,
    weight_files,
)
from packedesm.esm2.weights import check_kinds, check_tensors
from packedesm.files import combined, digests, identities, reading

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
    published = DIGESTS.get(model, {})
    try:
        found = [digests(file, {"sha256", *published}) for file in model_files(path)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_published(path, found[0], published, f"delete it and run `packedesm fetch {model}`")
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
        bytes=sum(file.stat().st_size for file in weight_files(path)),
        sha256=combined([file["sha256"] for file in found]),
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


@contextmanager
def reading_weights(checkpoint: Checkpoint) -> Iterator[Path]:
    """Give the path of the weights that `prepare` recorded; they are checked while they are read.

    Raises
    ------
    UserError
        At the end of the block, whatever that made of them, if they are gone or others.
    """
    path = Path(checkpoint.path)
    files = _present_files(path)
    try:
        with reading(*files, sha256=checkpoint.sha256):
            yield path
    except Damaged:
        raise UserError(
            f"{path}: changed since it was checked; if that was meant, run the workflow with "
            "--forcerun checkpoint"
        ) from None


@contextmanager
def unchanged_weights(checkpoint: Checkpoint) -> Iterator[None]:
    """Let the block use weights that may be mapped from their files.

    Raises
    ------
    UserError
        At the end of the block, if the files were touched meanwhile.
    """
    path = Path(checkpoint.path)
    before = identities(_present_files(path))
    yield
    if identities(_present_files(path)) != before:
        raise UserError(f"{path}: changed while it was in use; run again")


def _present_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: is gone; run the workflow again to make a new record")
    return model_files(path)


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
    check_kinds(state, sum(file.stat().st_size for file in weight_files(path)), str(path))
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
