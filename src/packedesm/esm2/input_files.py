"""Which of a model's files a run watches, as input: a change of one is another model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from packedesm.esm2.model_files import model_files, regression_file
from packedesm.esm2.registry import MODELS, base_name, locate
from packedesm.outputs import CONTACT_HEAD


def files_as_named(
    model: str, place: Callable[[str], str], needs: Collection[str] = ()
) -> list[str]:
    """Return the `model_files` of a model that is named by its path; of one with a name none.

    Those of an adapter's base are among them where that is named by its path too, and the last is
    the regression of its contact head, where that is needed and lies beside the weights.

    Parameters
    ----------
    model
        As `locate` takes it. A .pt file need not be there yet; of a folder nobody could know which
        files it will have.
    place
        Gives where a file lies that is named so; the files are named as `model` is.
    needs
        Heads, see `packedesm.outputs.needs`.

    Raises
    ------
    UserError
        As `locate`, `base_name` and `weight_files`.
    """
    if model in MODELS:
        return []
    there = Path(place(model))
    if there.suffix == ".pt" and not there.exists():
        return [model]
    files = model_files(locate(str(there)))
    inside = [file.relative_to(there) if file.is_relative_to(there) else file for file in files]
    named = [str(Path(model) / file) for file in inside]
    if (base := base_name(there)) is None:
        return named + [str(Path(model).with_name(file.name)) for file in _beside(there, needs)]
    of_base = [] if base in MODELS else present_files(Path(base).expanduser(), "auto", needs)
    return [*named, *map(str, of_base)]


def published_base(
    model: str, place: Callable[[str], str], folder: str | Path, needs: Collection[str] = ()
) -> list[Path]:
    """Return the files of the published model that an adapter is for, if `model` names such a one.

    Parameters as those of `files_as_named` and `locate`.
    """
    name = None if model in MODELS else base_name(Path(place(model)))
    if name not in MODELS:
        return []
    path = locate(name, folder)
    return [path, *_beside(path, needs)]


def present_files(path: Path, folder: str | Path, needs: Collection[str] = ()) -> list[Path]:
    """Return `Checkpoint.files` of what `locate` found; none if a base is not fetched yet.

    Parameters
    ----------
    needs
        Heads, see `packedesm.outputs.needs`.
    """
    name = base_name(path)
    base = None if name is None else locate(name, folder)
    if base is not None and not base.exists():
        return []
    return [*model_files(path, base), *_beside(path if base is None else base, needs)]


def _beside(path: Path, needs: Collection[str]) -> list[Path]:
    """Return the regression of a contact head, if it is needed and lies beside the weights."""
    file = regression_file(path)
    return [file] if CONTACT_HEAD in needs and not path.is_dir() and file.is_file() else []
