"""What a run can be asked for, and the arrays that come of it: their names, lines and columns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from packedesm.alphabet import STANDARD, TOKENS
from packedesm.errors import UserError

RECORD, RESIDUE, PAIR = "record", "residue", "pair"
LAST = "last"

# What comes from passes in which single residues are masked.
MARGINALS, PERPLEXITY = "masked_marginals", "pseudo_perplexity"

# What outputs come from, besides the encoder.
LANGUAGE_HEAD, CONTACT_HEAD = "language head", "contact head"


@dataclass(frozen=True)
class Output:
    """One thing that a run can be asked for, see `OUTPUTS`.

    Parameters
    ----------
    name
        In the configuration.
    per
        What a line of its array is for: a `RECORD`, a `RESIDUE` or a `PAIR` of residues.
    layered
        Whether it is a vector of the model's width, which there is of every layer that is asked
        for. What a head says comes from the last layer, or from all of them.
    columns
        What the numbers of a line stand for: letters; none where a line is one number; None for a
        vector of the model's width.
    needs
        The head that the weights must have.
    masked
        Whether it comes from passes in which single residues are masked.
    always_float32
        Whether its file is float32, whatever `output_dtype` says: numbers so few cost nothing.
    """

    name: str
    per: str
    layered: bool = False
    columns: tuple[str, ...] | None = ()
    needs: str | None = None
    masked: bool = False
    always_float32: bool = False


def _vector(name: str, per: str = RECORD) -> Output:
    return Output(name, per, layered=True, columns=None)


OUTPUTS = {
    output.name: output
    for output in (
        _vector("mean"),
        _vector("cls"),
        _vector("max"),
        _vector("residue", RESIDUE),
        Output("logits", RESIDUE, columns=TOKENS, needs=LANGUAGE_HEAD),
        Output("log_likelihood", RESIDUE, needs=LANGUAGE_HEAD, always_float32=True),
        Output(MARGINALS, RESIDUE, columns=STANDARD, needs=LANGUAGE_HEAD, masked=True),
        Output(PERPLEXITY, RECORD, needs=LANGUAGE_HEAD, masked=True, always_float32=True),
        Output("contacts", PAIR, needs=CONTACT_HEAD),
    )
}


def needs(outputs: Iterable[str]) -> frozenset[str]:
    """Return the heads that the weights must have for outputs of these names."""
    return frozenset(head for name in outputs if (head := OUTPUTS[name].needs) is not None)


@dataclass(frozen=True)
class Array:
    """One array of a run's results: an output, of one layer if there is one of each."""

    output: Output
    layer: int | None = None  # None: of the last layer, or of none

    @classmethod
    def named(cls, name: str) -> Array:
        """Return the array of a `name`; ValueError if it is that of none."""
        found = re.fullmatch(r"(\w+?)(?:\.layer(0|[1-9]\d{0,5}))?", name, re.ASCII)
        output = OUTPUTS.get(found[1]) if found else None
        if found is None or output is None or (found[2] and not output.layered):
            raise ValueError(f"no array is called {name!r}")
        return cls(output, int(found[2]) if found[2] else None)

    @property
    def name(self) -> str:
        """Of the array, and of its file: ``mean``, or ``mean.layer20``."""
        return self.output.name + ("" if self.layer is None else f".layer{self.layer}")

    @property
    def per(self) -> str:
        """What a line is for: `RECORD`, `RESIDUE` or `PAIR`."""
        return self.output.per

    @property
    def masked(self) -> bool:
        """Whether it comes from passes in which single residues are masked."""
        return self.output.masked

    def line(self, width: int) -> tuple[int, ...]:
        """Return the shape of one line, for a model whose vectors have `width` numbers."""
        columns = self.output.columns
        if columns is None:
            return (width,)
        return (len(columns),) if columns else ()

    def dtype(self, output_dtype: str) -> str:
        """Return the number format of the file, where that of the others is `output_dtype`."""
        return "float32" if self.output.always_float32 else output_dtype

    def size(self, residues: np.ndarray, width: int, output_dtype: str) -> int:
        """Return the bytes of the array of records with so many `residues`; see `line`, `dtype`."""
        numbers = int(self.lines(residues).sum()) * math.prod(self.line(width))
        return numbers * np.dtype(self.dtype(output_dtype)).itemsize

    def lines(self, residues: np.ndarray) -> np.ndarray:
        """Return the lines of each record: int64 (N,) for its int `residues` (N,).

        Of pairs there is one for each that stands on the diagonal or above it.
        """
        residues = np.asarray(residues, dtype=np.int64)
        if self.per == RECORD:
            return np.ones_like(residues)
        return residues if self.per == RESIDUE else residues * (residues + 1) // 2


def heads_of(arrays: Iterable[str]) -> frozenset[str]:
    """Return the heads that the weights must have for arrays of these names."""
    return needs(Array.named(name).output.name for name in arrays)


def array_names(
    outputs: Iterable[str], layers: Sequence[int | str], depth: int | None
) -> tuple[str, ...]:
    """Return the names of the arrays of a run, output by output, in the order of the layers.

    Parameters
    ----------
    outputs
        Names from `OUTPUTS`.
    layers
        `LAST`, or numbers as fair-esm counts its ``repr_layers``: 0 are the embeddings, `depth`
        is the last; negative ones count from the end, and -1 is the last.
    depth
        Layers of the model; None where it is not known yet. Then a number from 0 on is taken for
        one before the last, and `check_layers` has to tell later.

    Raises
    ------
    UserError
        If the model has no such layer, one is named twice, or it takes `depth` to know which.
    """
    numbers = [_layer(layer, depth) for layer in layers]
    if len(set(numbers)) < len(numbers):
        told = ", ".join(map(str, layers))
        raise UserError(f"layers: {told} name one layer twice; give each once")
    return tuple(
        Array(OUTPUTS[name], number).name
        for name in outputs
        for number in (numbers if OUTPUTS[name].layered else [None])
    )


def check_layers(names: Iterable[str], depth: int) -> None:
    """Raise UserError if a model of `depth` layers has no such layer, or it is the last one."""
    for layer in {Array.named(name).layer for name in names} - {None}:
        if _layer(layer, depth) is None:
            raise UserError(f"layers: {layer} is the last one of this model; say last")


def _layer(layer: int | str | None, depth: int | None) -> int | None:
    """Return the number of a layer, None for the last."""
    if layer in (None, LAST, depth, -1):
        return None
    assert layer is not None
    number = int(layer)
    if depth is None:
        if number < 0:
            raise UserError(
                f"layers: {number} counts from the end of a model that is not there yet; "
                "count from 0, or say last"
            )
        return number
    if not -depth - 1 <= number <= depth:
        raise UserError(
            f"layers: the model has no layer {number}; it has 0 (the embeddings) to {depth} (the "
            "last)"
        )
    return number % (depth + 1)
