"""Which files a checkpoint is read from; without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packedesm.errors import UserError
from packedesm.esm2.other_models import ADAPTER, other_files

REGRESSION = "-contact-regression.pt"
"""How the name of a contact head's file ends, which lies beside that of its model."""

_JSON_BYTES = 10_000_000  # the index of the largest model has 300,000


def model_files(path: Path, base: str | Path | None = None) -> list[Path]:
    """Return all files that a checkpoint is read from, as `weight_files` does.

    Of a folder the first are its settings and, where there is one, the index of its files.

    Parameters
    ----------
    base
        Of an adapter, where the weights lie that it is for.
    """
    if not path.is_dir():
        return [path]
    settings = ADAPTER if (path / ADAPTER).is_file() else "config.json"
    own = [path / settings, *_weights(path)]
    return own if base is None else [*own, *model_files(Path(base))]


def regression_file(path: Path) -> Path:
    """Return where the regression of a model's contact head lies, if a file holds the model.

    That is where fair-esm looks for it: ``NAME-contact-regression.pt`` beside ``NAME.pt``.
    """
    return path.with_name(f"{path.stem}{REGRESSION}")


def model_path(files: Sequence[str | Path]) -> Path:
    """Return the path of a checkpoint from its files; undoes `model_files`."""
    first = Path(files[0])
    return first.parent if first.suffix == ".json" else first


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a checkpoint; of a folder all are present.

    Where a folder holds them twice, these are the ones that transformers takes.

    Raises
    ------
    UserError
        If one is missing, or the index that names them is damaged.
    """
    return [file for file in _weights(path) if file.suffix != ".json"] if path.is_dir() else [path]


def _weights(path: Path) -> list[Path]:
    """Return the files of a folder's weights, after the index that names them if there is one."""
    stem = "adapter_model" if (path / ADAPTER).is_file() else "model"
    for name in (f"{stem}.safetensors", f"{'pytorch_' * (stem == 'model')}{stem}.bin"):
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            index = path / f"{name}.index.json"
            return [index, *_indexed(path, index)]
    what = f"{stem}.safetensors is missing"
    if other := other_files(path):
        raise UserError(f"{path}: {what}, it holds {other[0]}; {other[1]}")
    raise UserError(f"{path}: {what}; copy the folder again, or save it with save_pretrained()")


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted({*read_small_json(index)["weight_map"].values()})
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name that is no text")
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not an index of files of weights") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing, which {index.name} names; copy it again")
    return [folder / name for name in names]


def read_small_json(path: Path) -> Any:
    """Read a JSON file that comes with weights; UserError if it cannot be one of theirs."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, too many")
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
