"""Which models there are, where their weights lie, and what is recorded of them; without torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from packedesm.errors import Fault, UserError, quote_path
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model_files import model_files, model_path, read_small_json
from packedesm.esm2.other_models import ADAPTER, other_file, other_files
from packedesm.files import read_record, write_record

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


# Of the regressions of their contact heads: sha256 as two or more public projects have them. The
# others are checked by what they hold alone.
REGRESSION_SHA256 = {
    "esm2_t6_8M_UR50D": "8f7a4557d57713b97ba0e484303007efb7230d25299c0ac47a0a1b12a87bbb9d",
    "esm2_t30_150M_UR50D": "6a604b96722ed052eef8a094ad90b275ba2e987d406315dbed0bdc6b3c4238a7",
    "esm2_t33_650M_UR50D": "8ffe6edbd4173dc8d45c2cd5cb27d43aad77ec26b4c768200c58ae1f96693575",
    "esm2_t36_3B_UR50D": "4da500eab246481dc9c8c95bc7b1d02f2803d761c380b0e95186d4a07d0fc84e",
}


@dataclass(frozen=True)
class Checkpoint:
    """The weights that a run uses, as they were when `packedesm.esm2.checkpoints.prepare` saw them.

    Attributes
    ----------
    model
        As the user named it.
    path, format
        Where the weights lie, and whose layout they have: ``fair-esm``, ``huggingface`` or, where a
        file holds tensors alone, ``state_dict``.
    bytes, sha256
        Size of the weights; digest of all files that decide what the model computes.
    untrained, demo
        Random weights; the small trained model that ships with the package.
    digest_checked
        Whether the digest is the published one.
    layout
        In words, what was read and who wrote it so.
    base
        Where the weights lie that an adapter is merged into; None where there is no adapter.
    regression
        The file of the contact head's regression, where contacts were asked for and it lies beside
        the weights; else None.
    weights_sha256
        Digest of the weights without that regression, by which people know the model; empty where
        there is none, since it is `sha256` then.
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
    layout: str = ""
    base: str | None = None
    regression: str | None = None
    weights_sha256: str = ""

    def files(self) -> list[Path]:
        """Return all files that decide what the model computes, as `model_files` does.

        The last one is the regression, if there is one.
        """
        files = model_files(Path(self.path), self.base)
        return files if self.regression is None else [*files, Path(self.regression)]

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the fields, with the numbers of `geometry` among them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        size = values.pop("geometry")
        sizes = {"layers": size.layers, "width": size.width, "heads": size.heads}
        return {**values, **sizes, "parameters": size.parameters}

    def facts(self) -> dict[str, Any]:
        """Return what results tell of the model: no paths, and ``sha256`` is that of the weights.

        So it is the same with contacts and without them.
        """
        values = self.as_json()
        for place in ("path", "base", "regression"):
            del values[place]
        return {**values, "sha256": values.pop("weights_sha256") or self.sha256}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Checkpoint:
        """Return what `as_json` gave; KeyError if something is missing.

        The layout, base and regression may be: earlier versions did not record them.
        """
        values = {
            field.name: content[field.name]
            for field in fields(cls)
            if field.name != "geometry" and (field.default is MISSING or field.name in content)
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
        """Return the checkpoint where a step sees its `files`; as it is if there are none.

        A step may be given copies, made for it on another machine.
        """
        if not files:
            return self
        regression = self.regression
        if regression is not None and Path(files[-1]).name == Path(regression).name:
            *files, last = files
            regression = str(Path(last).absolute())
        path = model_path(files).absolute()
        of_base = files[len(model_files(path)) :]
        base = str(model_path(of_base).absolute()) if of_base else self.base
        return replace(self, path=str(path), base=base, regression=regression)

    def write(self, path: Path) -> None:
        """Write ``checkpoint.json``, atomically."""
        write_record(path, self.as_json())


def locate(model: str, folder: str | Path = "auto") -> Path:
    """Return where the weights of `model` lie, or will lie once they are fetched or made.

    The demo model is a file of the package; `folder` does not matter for it.

    Parameters
    ----------
    model
        A name from `MODELS`, the path of a file that torch.save wrote, or of a folder in Hugging
        Face's layout: of a model, or of a LoRA adapter.

    Raises
    ------
    UserError
        If it is none of them.
    """
    if model == DEMO:
        return Path(str(files("packedesm"))) / "data" / f"{DEMO}.pt"
    if model in MODELS:
        return checkpoint_folder(folder) / f"{model}.pt"
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
            if other := other_files(path):
                raise UserError(f"model {model!r} holds {other[0]}; {other[1]}")
            raise UserError(
                f"model {model!r} is a folder without config.json; name a .pt file, "
                "or a folder in Hugging Face's layout"
            )
        return path
    if path.is_file():
        if other := other_file(path):
            raise UserError(f"{path}: holds {other[0]}; {other[1]}")
        return path
    # A slip is not to end in a model that is only for trying the software.
    published = {name.lower(): name for name in MODELS if name not in (TINY, DEMO)}
    wanted = model.rpartition("/")[2].lower()
    begin = [name for name in published if wanted and name.startswith(wanted)]
    close = begin or difflib.get_close_matches(wanted, published, n=1)
    hint = f"did you mean {published[close[0]]}? " if close else ""
    raise UserError(
        f"model {model!r} is neither a name nor a file or folder; {hint}"
        f"names are {', '.join(MODELS)}"
    )


def known_depth(model: str, place: Callable[[str], str]) -> int | None:
    """Return the number of a model's layers where that is told without reading weights.

    Parameters as those of `files_as_named`.
    """
    if model in MODELS:
        return MODELS[model].layers
    settings = Path(place(model)).expanduser() / "config.json"
    content = read_small_json(settings) if settings.is_file() else None
    depth = content.get("num_hidden_layers") if isinstance(content, dict) else None
    return depth if isinstance(depth, int) else None


def base_name(path: Path) -> str | None:
    """Return the model that the adapter in a folder is for, as `locate` takes it; None if none is.

    A published model has its name here, also where Hugging Face's is given: ``facebook/NAME``.

    Raises
    ------
    UserError
        If the adapter's settings are damaged, or name no model.
    """
    settings = path / ADAPTER
    if not settings.is_file():
        return None
    content = read_small_json(settings)
    name = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{settings}: names no base model; put its name or path there as "
            "base_model_name_or_path"
        )
    # Under another account it may be a model that somebody trained on.
    published, local = name.removeprefix("facebook/"), False
    with suppress(OSError, RuntimeError):  # no system has a path of this length, or this user
        place = Path(name).expanduser()
        local = place.is_file() or (place / "config.json").is_file()
        if (place / ADAPTER).is_file():
            raise UserError(
                f"{settings}: the base is an adapter too; merge and save that one first"
            )
    if published in MODELS and not local:
        return published
    if not local:
        raise UserError(
            f"{settings}: the base model {quote_path(name)} is not here; put the path of its "
            "folder there as base_model_name_or_path, or merge where it was trained: "
            "model.merge_and_unload().save_pretrained(FOLDER)"
        )
    return name


def check_published(
    source: object, found: Mapping[str, str], published: Mapping[str, str], advice: str
) -> None:
    """Raise UserError unless the digests that were found of a file are the published ones."""
    for algorithm, digest in published.items():
        if found[algorithm] != digest:
            raise UserError(
                f"{source}: {algorithm} is {found[algorithm]}, expected {digest}; {advice}"
            )


def checkpoint_folder(folder: str | Path = "auto") -> Path:
    """Return the folder of downloaded checkpoints; ``auto`` is where fair-esm keeps them.

    That is `torch.hub.get_dir()`/checkpoints, found without importing torch.
    """
    if folder != "auto":
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"
