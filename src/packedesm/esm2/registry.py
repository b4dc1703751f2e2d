"""Which models there are, how large they are, and where their weights lie; all without torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import UserError

VOCABULARY = 33  # tokens of fair-esm's ESM-1b alphabet, which ESM-2 uses


@dataclass(frozen=True)
class Geometry:
    """Size of an ESM-2 model: transformer layers, width of a vector, attention heads."""

    layers: int
    width: int
    heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Weights of the encoder, without the heads for language modelling and contacts.

        Per layer 12 width² + 13 width: q, k, v and output 4 width² + 4 width, the two feed-forward
        matrices 8 width² + 5 width, two LayerNorms 4 width. Besides, the embeddings and the last
        LayerNorm.
        """
        per_layer = 12 * self.width**2 + 13 * self.width
        return VOCABULARY * self.width + self.layers * per_layer + 2 * self.width

    def flops(self, lengths: Sequence[int] | np.ndarray) -> float:
        """Return the floating-point operations of one pass over sequences of `lengths` tokens.

        Per layer 24 width² for each token (2 operations for each of the 12 width² weights of its
        matrices) and 4 width T² for a sequence of T tokens (the products q kᵀ and softmax v).
        Element-wise work is not counted.
        """
        tokens = np.asarray(lengths, np.float64)
        matrices = 24 * self.width**2 * tokens.sum()
        attention = 4 * self.width * np.square(tokens).sum()
        return float(self.layers * (matrices + attention))


def checked_geometry(source: Path, layers: Any, width: Any, heads: Any) -> Geometry:
    """Return the size that a checkpoint states.

    Raises
    ------
    UserError
        If no model can have it.
    """
    numbers = {"layers": layers, "width": width, "heads": heads}
    for what, number in numbers.items():
        if type(number) is not int or number < 1:
            raise UserError(f"{source}: number of {what} is {number!r}, not a whole number above 0")
    if width % (2 * heads):
        raise UserError(
            f"{source}: width {width} does not split into {heads} heads of even width; "
            "its settings do not fit its weights"
        )
    return Geometry(layers, width, heads)


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


def checkpoint_folder(folder: str | Path = "auto") -> Path:
    """Return the folder of downloaded checkpoints; ``auto`` is where fair-esm keeps them.

    That is `torch.hub.get_dir()`/checkpoints, found without importing torch.
    """
    if folder != "auto":
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"
