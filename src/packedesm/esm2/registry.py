"""Which models there are, where their weights lie, and what is recorded of them; without torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from packedesm.errors import Fault, UserError
from packedesm.esm2.geometry import Geometry
from packedesm.files import read_json, read_record, write_record

TINY = "esm2_tiny_random"  # made locally, untrained
DEMO = "esm2_t6_3M_demo"  # trained by us, part of the package: to try the software, not for science

MODELS = {
    TINY: Geometry(layers=3, width=64, heads=4),
    DEMO: Geometry(layers=6, width=192, heads=6),
    "esm2_t6_8M_UR50D": Geometry(layers=6, width=320, heads=20),
    "esm2_t12_35M_UR50D": Geometry(layers=12, width=480, heads=20),
    "esm2_t30_150M_UR50D": Geometry(layers=30, width=640, heads=20),
    "esm2_t33_650M_UR50D": Geometry(layers=33, width=1280, heads=20),
    "esm2_t36_3B_UR50D": Geometry(layers=36, width=2560, heads=40),
    "esm2_t48_15B_UR50D": Geometry(layers=48, width=5120, heads=40),
}

_INDEX = "model.safetensors.index.json"  # of a folder with several files of weights: their names
_JSON_BYTES = 10_000_000  # the index of the largest model has 300,000

# md5 as TorchDrug publishes them, sha256 as several public projects agree.
DIGESTS: dict[str, dict[str, str]] = {
    "esm2_t6_8M_UR50D": {"md5": "8039fc9cee7f71cd2633b13b5a38ff50"},
    "esm2_t12_35M_UR50D": {"md5": "a894ddb31522e511e1273abb23b5f974"},
    "esm2_t30_150M_UR50D": {"md5": "229fcf8f9f3d4d442215662ca001b906"},
    "esm2_t33_650M_UR50D": {
        "md5": "ba6d997e29db07a2ad9dca20e024b102",
        "sha256": "ea9d0522b335a8778dea6535a65301f10208dece28cd5865482b0b1fc446168c",
    },
    "esm2_t36_3B_UR50D": {
        "md5": "d37a0d0dbe7431e48a72072b9180b16b",
        "sha256": "7de8b4082ba15891959ab368b77ce3886697af1efb16d3c9e9e7b0c5d3f07500",
    },
    "esm2_t48_15B_UR50D": {"md5": "af61a9c0b792ae50e244cde443b7f4ac"},
}


@dataclass(frozen=True)
class Checkpoint:
    """The weights that a run uses, as they were when `packedesm.esm2.checkpoints.prepare` saw them.

    Attributes
    ----------
    model
        As the user named it.
    path, format
        Where the weights lie, and whose layout they have: ``fair-esm`` or ``huggingface``.
    bytes, sha256
        Size of the weights; digest of all files that decide what the model computes.
    untrained, demo
        Random weights; the small trained model that ships with the package.
    digest_checked
        Whether the digest is the published one.
    """

    model: str
    path: str
    format: str
    geometry: Geometry
    bytes: int
    sha256: str
    untrained: bool
    demo: bool
    digest_checked: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the fields, with the numbers of `geometry` among them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        size = values.pop("geometry")
        sizes = {"layers": size.layers, "width": size.width, "heads": size.heads}
        return {**values, **sizes, "parameters": size.parameters}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Checkpoint:
        """Return what `as_json` gave; KeyError if something is missing."""
        values = {
            name: content[name] for name in (f.name for f in fields(cls)) if name != "geometry"
        }
        sizes = (content[size] for size in ("layers", "width", "heads"))
        return cls(geometry=Geometry(*sizes), **values)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read ``checkpoint.json``; Fault if the file is not what `write` wrote."""
        try:
            return cls.from_json(read_record(path))
        except (KeyError, TypeError):
            raise Fault(
                f"{path}: is not the record of a checkpoint; delete it and run again"
            ) from None

    def at(self, files: Sequence[str | Path]) -> Checkpoint:
        """Return the checkpoint where a step sees its `model_files`; as it is if there are none.

        A step may be given copies, made for it on another machine.
        """
        return replace(self, path=str(model_path(files).absolute())) if files else self

    def write(self, path: Path) -> None:
        """Write ``checkpoint.json``, atomically."""
        write_record(path, self.as_json())


def locate(model: str, folder: str | Path = "auto") -> Path:
    """Return where the weights of `model` lie, or will lie once they are fetched or made.

    The demo model is a file of the package; `folder` does not matter for it.

    Parameters
    ----------
    model
        A name from `MODELS`, the path of a .pt file in fair-esm's layout, or of
        a folder in Hugging Face's layout.

    Raises
    ------
    UserError
        If it is neither.
    """
    if model == DEMO:
        return Path(str(files("packedesm"))) / "data" / f"{DEMO}.pt"
    if model in MODELS:
        return checkpoint_folder(folder) / f"{model}.pt"
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model {model!r} is a folder without config.json; name a .pt file, "
                "or a folder in Hugging Face's layout"
            )
        return path
    if path.is_file():
        return path
    close = difflib.get_close_matches(model, MODELS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"model {model!r} is neither a name nor a file or folder; {hint}"
        f"names are {', '.join(MODELS)}"
    )


def model_files(path: Path) -> list[Path]:
    """Return all files that decide what a checkpoint computes, as `weight_files` does."""
    if not path.is_dir():
        return [path]
    index = [path / _INDEX] if (path / _INDEX).is_file() else []
    return [path / "config.json", *index, *weight_files(path)]


def model_path(files: Sequence[str | Path]) -> Path:
    """Return the path of a checkpoint from its files; undoes `model_files`."""
    first = Path(files[0])
    return first.parent if first.suffix == ".json" else first


def files_as_named(model: str, place: Callable[[str], str]) -> list[str]:
    """Return the `model_files` of a model that is named by its path; of one with a name none.

    Parameters
    ----------
    model
        As `locate` takes it. A .pt file need not be there yet; of a folder nobody could know which
        files it will have.
    place
        Gives where a file lies that is named so; the files are named as `model` is.

    Raises
    ------
    UserError
        As `locate` and `weight_files`.
    """
    if model in MODELS:
        return []
    there = Path(place(model))
    if there.suffix == ".pt" and not there.exists():
        return [model]
    files = model_files(locate(str(there)))
    inside = [file.relative_to(there) if file.is_relative_to(there) else file for file in files]
    return [str(Path(model) / file) for file in inside]


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a checkpoint; of a folder all are present.

    Raises
    ------
    UserError
        If one is missing, or the index that names them is damaged.
    """
    if not path.is_dir():
        return [path]
    folder, index = path, path / _INDEX
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted({*read_small_json(index)["weight_map"].values()})
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a name that is no text")
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: not an index of safetensors files") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; a Hugging Face folder needs safetensors")
    return [folder / name for name in names]


def check_published(
    source: object, found: Mapping[str, str], published: Mapping[str, str], advice: str
) -> None:
    """Raise UserError unless the digests that were found of a file are the published ones."""
    for algorithm, digest in published.items():
        if found[algorithm] != digest:
            raise UserError(
                f"{source}: {algorithm} is {found[algorithm]}, expected {digest}; {advice}"
            )


def read_small_json(path: Path) -> Any:
    """Read a JSON file that comes with weights; UserError if it cannot be one of theirs."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, too many")
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def checkpoint_folder(folder: str | Path = "auto") -> Path:
    """Return the folder of downloaded checkpoints; ``auto`` is where fair-esm keeps them.

    That is `torch.hub.get_dir()`/checkpoints, found without importing torch.
    """
    if folder != "auto":
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"
