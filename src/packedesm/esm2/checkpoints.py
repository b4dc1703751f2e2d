"""Make sure that a model's weights are there, whole and the same, and read them in any layout."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from packedesm.errors import Damaged, UserError
from packedesm.esm2 import adapters, fair_esm, hugging_face, state_dicts
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model_files import weight_files
from packedesm.esm2.registry import (
    DEMO,
    DIGESTS,
    MODELS,
    TINY,
    Checkpoint,
    base_name,
    check_published,
    locate,
    model_files,
)
from packedesm.esm2.tensor_files import load_archive
from packedesm.esm2.weights import Weights, check_kinds, check_tensors, frequency_names
from packedesm.files import combined, digests, identities, reading

logger = logging.getLogger(__name__)

TINY_SEED = 1


def prepare(model: str, folder: str | Path) -> Checkpoint:
    """Make sure that the weights of `model` are there and fit; return what they are.

    A missing published checkpoint is fetched, the missing untrained one is made; so is the one that
    an adapter is for.

    Parameters
    ----------
    model, folder
        As `packedesm.esm2.registry.locate` takes them.

    Raises
    ------
    UserError
        If the model is unknown, cannot be fetched, is damaged, or does not fit its settings.
    """
    checkpoint, weights = _examined(model, folder)
    _tell(Path(checkpoint.path), weights)
    return checkpoint


def _examined(model: str, folder: str | Path) -> tuple[Checkpoint, Weights]:
    path = locate(model, folder)
    name = base_name(path)
    base = None if name is None else _examined(name, folder)[0].path
    if model in MODELS and not path.exists():
        _provide(model, path)
    published = DIGESTS.get(model, {})
    try:
        found = [digests(file, {"sha256", *published}) for file in model_files(path, base)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_published(path, found[0], published, f"delete it and run `packedesm fetch {model}`")
    if not published:
        _check_archives(path)
    weights = read(path, base)
    if model in MODELS and weights.geometry != MODELS[model]:
        raise UserError(
            f"{path}: {weights.geometry} is not {model}, which is {MODELS[model]}; "
            "delete the file, or set `model` to its path"
        )
    parts = [path] if base is None else [path, Path(base)]
    checkpoint = Checkpoint(
        model=model,
        path=str(path.absolute()),
        format=_format(path, weights.layout),
        geometry=weights.geometry,
        bytes=sum(file.stat().st_size for part in parts for file in weight_files(part)),
        sha256=combined([file["sha256"] for file in found]),
        untrained=path.stem == TINY,
        demo=path.stem == DEMO,
        digest_checked=bool(published),
        layout=weights.layout,
        base=base,
    )
    return checkpoint, weights


def _format(path: Path, layout: str) -> str:
    if path.is_dir():
        return "huggingface"
    return "fair-esm" if layout.startswith("fair-esm") else "state_dict"


def _tell(path: Path, weights: Weights) -> None:
    """Say in the log what was read, and what of it is not used."""
    logger.info("model: %s", weights.layout)
    if weights.left_out:
        logger.info("of the model these parts change no vector: %s", ", ".join(weights.left_out))
    stored = {
        weights.state[name].dtype
        for name in frequency_names(weights.geometry)
        if name in weights.state
    }
    if torch.bfloat16 in stored:
        logger.warning(
            "%s: its rotary frequencies were rounded to bfloat16 when it was saved: of long "
            "proteins it makes other vectors than before; if you can, save it again from float32",
            path,
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
    files = _present_files(checkpoint)
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
    before = identities(_present_files(checkpoint))
    yield
    if identities(_present_files(checkpoint)) != before:
        raise UserError(f"{path}: changed while it was in use; run again")


def _present_files(checkpoint: Checkpoint) -> list[Path]:
    for path in (checkpoint.path, checkpoint.base):
        if path is not None and not Path(path).exists():
            raise UserError(f"{path}: is gone; run the workflow again to make a new record")
    return checkpoint.files()


def read_geometry(path: Path) -> Geometry:
    """Return the size of the model in `path`; weights are mapped, and not read.

    Raises
    ------
    UserError
        As `read`.
    """
    return read(path).geometry


def load_state(
    path: Path, base: str | Path | None = None
) -> tuple[Geometry, Mapping[str, torch.Tensor]]:
    """Return size and encoder weights of a checkpoint, by fair-esm's names without prefix.

    The tensors are mapped from the file: they take memory when they are used.

    Parameters
    ----------
    path, base
        As `read` takes them.

    Raises
    ------
    UserError
        As `read`.
    """
    weights = read(path, base)
    return weights.geometry, weights.state


def read(path: Path, base: str | Path | None = None) -> Weights:
    """Return the encoder of a checkpoint in any layout.

    Parameters
    ----------
    base
        Of an adapter, where the weights lie that it is merged into.

    Raises
    ------
    UserError
        If a file is missing, damaged or no ESM-2 checkpoint, if it holds anything but tensors
        and settings, or if its tensors do not fit its settings.
    """
    path = Path(path)
    if (name := base_name(path)) is not None:
        return adapters.load(path, read(locate(name) if base is None else Path(base)))
    if path.is_dir():
        weights = hugging_face.load(path)
    else:
        content = load_archive(path)
        reader = fair_esm if fair_esm.is_published(content) else state_dicts
        weights = reader.load(path, content)
    state = weights.state
    check_kinds(state, sum(file.stat().st_size for file in weight_files(path)), str(path))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_tensors(shapes, weights.geometry, str(path))
    return weights


def _check_archives(path: Path) -> None:
    """Raise UserError if bytes of a file that torch.save wrote do not have its checksums."""
    for file in weight_files(path):
        if not zipfile.is_zipfile(file):
            continue
        with zipfile.ZipFile(file) as archive:
            try:
                damaged = archive.testzip()
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{file}: damaged ({error}); download or copy it again") from error
        if damaged:
            raise UserError(f"{file}: damaged (checksum of {damaged}); download or copy it again")
