"""Read files of named tensors, mapped; nothing in them is executed."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from packedesm.errors import UserError, first_line


def tensors_of(file: Path) -> Mapping[str, torch.Tensor]:
    """Return all tensors of a .safetensors or .bin file by their names, mapped from it.

    Raises
    ------
    UserError
        If it cannot be read, or holds anything but tensors.
    """
    if file.suffix == ".bin":
        content = load_archive(file)
        if not isinstance(content, dict):
            raise UserError(f"{file}: not named tensors; copy it again")
        return content
    return dict(_safetensors(file))


def _safetensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a mapping
                yield name, tensors.get_tensor(name)
    # Of a damaged header the library raises its own error, or what reading a tensor makes of it.
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        _refuse_pointer(file)
        raise UserError(f"{file}: cannot be read ({first_line(error)}); copy it again") from error


def load_archive(path: Path) -> Any:
    """Return the content of a file that torch.save wrote, its tensors mapped.

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
                "where it was made, save the tensors alone: torch.save(model.state_dict(), FILE), "
                "or of a training's checkpoint torch.save(checkpoint['state_dict'], FILE)"
            ) from error
        _refuse_pointer(path)
        _refuse_text(path)
        # What torch says first is how to switch its protection off.
        reason = re.search(r"WeightsUnpickler error: *(.+)", str(error))
        raise UserError(
            f"{path}: not a checkpoint, or damaged ({reason[1] if reason else first_line(error)}); "
            "download or copy it again"
        ) from error


def _refuse_text(path: Path) -> None:
    """Raise UserError if a file does not begin as those that torch.save writes."""
    with path.open("rb") as handle:
        begin = handle.read(1)
    if begin == b">":
        raise UserError(
            f"{path}: not a checkpoint, it is FASTA; name a .pt file, or a folder in Hugging "
            "Face's layout"
        )
    if begin not in (b"P", b"\x80"):  # of an archive, and of a pickle
        raise UserError(
            f"{path}: not a checkpoint, or damaged (it does not begin as one); name a .pt file, or "
            "download or copy it again"
        )


def _refuse_pointer(path: Path) -> None:
    """Raise UserError if a file stands for one that Git has not fetched."""
    with path.open("rb") as handle:
        if handle.read(40).startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path}: is a pointer of Git LFS, not the file itself; fetch that: git lfs pull"
            )
