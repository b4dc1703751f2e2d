"""Make sure that a model's weights are there, whole and the same, and read them in any layout."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from packedesm.errors import Damaged, UserError
from packedesm.esm2 import adapters, fair_esm, hugging_face, state_dicts
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.head_weights import checked_heads, read_regression
from packedesm.esm2.model_files import model_files, regression_file, weight_files
from packedesm.esm2.registry import (
    DEMO,
    DIGESTS,
    MODELS,
    REGRESSION_SHA256,
    TINY,
    Checkpoint,
    base_name,
    check_published,
    locate,
)
from packedesm.esm2.tensor_files import load_archive
from packedesm.esm2.weights import Weights, check_kinds, check_tensors, frequency_names
from packedesm.files import combined, digests, identities, reading
from packedesm.outputs import CONTACT_HEAD

logger = logging.getLogger(__name__)

TINY_SEED = 1


def prepare(model: str, folder: str | Path, needs: Collection[str] = ()) -> Checkpoint:
    """Make sure that the weights of `model` are there and fit; return what they are.

    A missing published checkpoint is fetched, the missing untrained one is made; so is the one that
    an adapter is for, and the regression of their contact heads if it is needed.

    Parameters
    ----------
    model, folder
        As `packedesm.esm2.registry.locate` takes them.
    needs
        The heads that the weights must have, see `packedesm.outputs.needs`.

    Raises
    ------
    UserError
        If the model is unknown, cannot be fetched, is damaged, does not fit its settings, or lacks
        a head.
    """
    checkpoint, weights = _examined(model, folder, needs)
    _tell(Path(checkpoint.path), weights)
    return checkpoint


def _examined(model: str, folder: str | Path, needs: Collection[str]) -> tuple[Checkpoint, Weights]:
    path = locate(model, folder)
    name = base_name(path)
    base = None if name is None else _examined(name, folder, needs)[0]
    base_path = None if base is None else base.path
    if model in MODELS and not path.exists():
        _provide(model, path)
    regression = _regression(model, path, needs) if base is None else base.regression
    published = DIGESTS.get(model, {})
    files = model_files(path, base_path) + ([] if regression is None else [Path(regression)])
    try:
        found = [digests(file, {"sha256", *published}) for file in files]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    advice = f"delete it and run `packedesm fetch {model}`"
    check_published(path, found[0], published, advice)
    if regression is not None and model in REGRESSION_SHA256:
        check_published(regression, found[-1], {"sha256": REGRESSION_SHA256[model]}, advice)
    if not published:
        _check_archives(path)
    weights = read(path, base_path, needs, regression)
    if model in MODELS and weights.geometry != MODELS[model]:
        raise UserError(
            f"{path}: {weights.geometry} is not {model}, which is {MODELS[model]}; "
            "delete the file, or set `model` to its path"
        )
    parts = [path] if base_path is None else [path, Path(base_path)]
    checkpoint = Checkpoint(
        model=model,
        path=str(path.absolute()),
        format=_format(path, weights.layout),
        geometry=weights.geometry,
        bytes=sum(file.stat().st_size for part in parts for file in weight_files(part)),
        sha256=combined(digest_of_each := [file["sha256"] for file in found]),
        untrained=path.stem == TINY,
        demo=path.stem == DEMO,
        digest_checked=bool(published),
        layout=weights.layout,
        base=base_path,
        regression=regression,
        weights_sha256="" if regression is None else combined(digest_of_each[:-1]),
    )
    return checkpoint, weights


def _regression(model: str, path: Path, needs: Collection[str]) -> str | None:
    """Return the file of a contact head's regression, if it is needed and lies beside the weights.

    That of a model with a name is fetched or made where it is missing.
    """
    file = regression_file(path)
    if CONTACT_HEAD not in needs or path.is_dir():
        return None
    if not file.exists() and model == TINY:
        fair_esm.write_random_regression(file, MODELS[TINY], TINY_SEED)
    elif not file.exists() and model in DIGESTS:
        from packedesm.esm2.download import fetch_regression  # as in `_provide`

        fetch_regression(model, path.parent)
    return str(file.absolute()) if file.exists() else None


def _format(path: Path, layout: str) -> str:
    if path.is_dir():
        return "huggingface"
    return "fair-esm" if layout.startswith("fair-esm") else "state_dict"


def _tell(path: Path, weights: Weights) -> None:
    """Say in the log what was read, and what of it is not used."""
    logger.info("model: %s", weights.layout)
    used = {name.partition(".")[0] for name in weights.heads}
    if used:
        logger.info("heads of the model that are used: %s", ", ".join(sorted(used)))
    if unused := [part for part in weights.left_out if part not in used]:
        logger.info("of the model these parts change no vector: %s", ", ".join(unused))
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
    for path in (checkpoint.path, checkpoint.base, checkpoint.regression):
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


def read(
    path: Path,
    base: str | Path | None = None,
    needs: Collection[str] = (),
    regression: str | Path | None = None,
) -> Weights:
    """Return the encoder of a checkpoint in any layout, and those of its heads that are needed.

    Parameters
    ----------
    base
        Of an adapter, where the weights lie that it is merged into.
    needs
        Heads, see `packedesm.outputs.needs`.
    regression
        The file of the contact head's regression, which precedes what lies with the weights, as in
        fair-esm; `Checkpoint.regression`.

    Raises
    ------
    UserError
        If a file is missing, damaged or no ESM-2 checkpoint, if it holds anything but tensors
        and settings, if its tensors do not fit its settings, or if a head is missing.
    """
    path = Path(path)
    if (name := base_name(path)) is not None:
        base = locate(name) if base is None else Path(base)
        return adapters.load(path, read(base, None, needs, regression), needs)
    weights = _read_encoder(path)
    if not needs:
        return replace(weights, heads={})
    files = weight_files(path)
    if CONTACT_HEAD in needs and regression is not None:
        alone = read_regression(Path(regression), weights.geometry)
        weights = replace(weights, heads={**weights.heads, **alone})
        files = [*files, Path(regression)]
    return replace(weights, heads=checked_heads(weights, needs, path, files))


def _read_encoder(path: Path) -> Weights:
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
