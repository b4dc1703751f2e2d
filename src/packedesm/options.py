"""The typed options: what the configuration means below its edge, frozen and made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from packedesm.errors import UserError

SPECIAL_TOKENS = 2  # <cls> and <eos> around every window
NONE = "none"  # in place of a path or a column

_MOST_BY_AUTO = 16  # records that are verified where no number is asked for


class _Options:
    """Base of options that are made from keys of the configuration with the names of its fields."""

    @classmethod
    def part(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a resolved configuration that `of` needs, in plain values."""
        return cls.of(config).as_config()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the options of a resolved configuration, or of the `part` of one."""
        values = {}
        for field in fields(cls):  # type: ignore[arg-type]
            value = LengthPolicy.of(config) if field.name == "length" else config[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def as_config(self) -> dict[str, Any]:
        """Return the values by their keys in the configuration, for JSON; undoes `of`."""
        values: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, LengthPolicy):
                values |= value.as_config()
            else:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values


@dataclass(frozen=True)
class LengthPolicy(_Options):
    """Which residues of a record are embedded, and how many tokens that takes.

    A *window* is a half-open range of residues that the model sees as one sequence, between its own
    ``<cls>`` and ``<eos>``. Most records are one window; long ones may be several.

    Parameters
    ----------
    max_length
        Most residues in one window, except under ``full``.
    long_sequences
        ``truncate`` keeps the first `max_length` residues; ``window`` covers all of them with the
        fewest windows of exactly `max_length` residues of which neighbours share at least
        `window_overlap`, evenly spaced; ``full`` and ``error`` keep the record in one piece.
    window_overlap
        Residues that neighbouring windows share at least; only ``window`` reads it.

    Raises
    ------
    UserError
        Under ``window``, windows could not advance past their overlap.
    """

    max_length: int
    long_sequences: str
    window_overlap: int

    def __post_init__(self) -> None:
        if self.long_sequences == "window" and self.window_overlap >= self.max_length:
            raise UserError(
                f"window_overlap ({self.window_overlap}) must be smaller than max_length "
                f"({self.max_length}) when long_sequences is window"
            )

    def windows(self, length: int) -> list[tuple[int, int]]:
        """Return the residue ranges ``(start, stop)`` that are embedded of one record."""
        if self.long_sequences == "truncate":
            return [(0, min(length, self.max_length))]
        if self.long_sequences != "window" or length <= self.max_length:
            return [(0, length)]
        count = int(self._windows(length))
        starts = [round(i * (length - self.max_length) / (count - 1)) for i in range(count)]
        return [(start, start + self.max_length) for start in starts]

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """Return how many windows each record has: int64 (N,) for int `lengths` (N,), residues."""
        lengths = np.asarray(lengths, dtype=np.int64)
        if self.long_sequences != "window":
            return np.ones(lengths.shape, dtype=np.int64)
        return np.where(lengths > self.max_length, self._windows(lengths), 1)

    def tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return the tokens of each record: int64 (N,) for int `lengths` (N,) in residues.

        That is the sum over its windows of their residues and two special tokens. All windows of
        one record have the same length.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        cut = self.long_sequences in ("truncate", "window")
        longest = np.minimum(lengths, self.max_length) if cut else lengths
        return self.counts(lengths) * (longest + SPECIAL_TOKENS)

    def window_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return the tokens of each window of each record: int64 (N,)."""
        return self.tokens(lengths) // self.counts(lengths)

    def sequence_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return the tokens of every window, record after record: int64 (S,)."""
        return np.repeat(self.window_tokens(lengths), self.counts(lengths))

    def embedded(self, lengths: np.ndarray) -> np.ndarray:
        """Return the residues of each record that are embedded: int64 (N,)."""
        lengths = np.asarray(lengths, dtype=np.int64)
        truncate = self.long_sequences == "truncate"
        return np.minimum(lengths, self.max_length) if truncate else lengths

    def _windows(self, length: int | np.ndarray) -> int | np.ndarray:
        # ceil((length - overlap) / (max_length - overlap)) in integers
        return -((self.window_overlap - length) // (self.max_length - self.window_overlap))


@dataclass(frozen=True)
class ShardOptions(_Options):
    """How the input is read and cut into shards; a change makes new shards."""

    length: LengthPolicy
    empty_sequences: str  # "error", or "skip": no row for records without residues
    deduplicate: bool  # only the first of identical sequences is embedded
    ids: str  # "first_word" of the header, or all of the "header"
    masked: bool = False  # each record also takes a pass for each residue, see `partition`

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the options of a configuration, or of the `part` of one."""
        from packedesm.outputs import OUTPUTS  # here: what is told of options needs no outputs

        masked = any(OUTPUTS[name].masked for name in config.get("outputs", ()))
        return super().of({"masked": masked, **config})


@dataclass(frozen=True)
class EmbedOptions(_Options):
    """What decides the vectors of a shard, as the user asked for it; a change embeds it again."""

    length: LengthPolicy
    dtype: str  # of the computation: float32, bfloat16, float16, int8 or auto
    attention: str  # a backend, or auto
    token_budget: int | str  # most tokens in a pack, or auto
    arrays: tuple[str, ...]  # names, see `packedesm.outputs.Array`
    output_dtype: str  # of the files: float32, float16 or auto


class _OfVerify(_Options):
    """Base of options that stand under ``verify`` in the configuration, or beside it."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the options of a configuration, or of the `part` of one."""
        return super().of({**config, **config.get("verify", {})})


@dataclass(frozen=True)
class JobOptions(_OfVerify):
    """How an embedding job works; what is finished stays, whatever they are changed to."""

    device: str  # cpu, cuda, auto: a GPU where there is one; or the UUIDs of some GPUs
    workers: int | str  # processes that read and tokenise ahead of the device, or auto
    seed: int
    commit_seconds: float  # most time between two commits
    commit_packs: int  # most packs between two commits
    sequences: int | str  # that are verified, or auto; with 0 the job does not check itself either
    min_cosine: float  # what passes its first check, see `VerifyOptions`
    max_relative_l2: float | str


@dataclass(frozen=True)
class ReferenceOptions(_OfVerify):
    """Which reference vectors are computed; a change computes them again."""

    length: LengthPolicy
    arrays: tuple[str, ...]
    sequences: int | str  # records, 0 turns verification off; or auto, a share of the run
    seed: int  # of the sample

    @property
    def most(self) -> int:
        """Most records that are verified."""
        return _MOST_BY_AUTO if isinstance(self.sequences, str) else self.sequences


@dataclass(frozen=True)
class VerifyOptions(_OfVerify):
    """How the results are compared with the reference."""

    sequences: int | str  # records to compare; 0 turns verification off; or auto
    min_cosine: float  # smallest cosine similarity that passes; each residue's for "residue"
    max_relative_l2: float | str  # largest |x - reference| / |reference| that passes, or auto
    seed: int  # of the sample


@dataclass(frozen=True)
class ReportOptions(_Options):
    """What the report shows of the vectors; nothing else depends on it."""

    map: str  # "pca", or "tsne": with a second map, of who is near to whom
    annotations: str  # path of a table of proteins, or "none"
    column: str  # of that table, to colour by, or "none": the first beside the ids
    seed: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the options of a configuration, or of the `part` of one."""
        return super().of({**config, **config.get("report", {})})

    @property
    def table(self) -> Path | None:
        """The table of annotations, if there is one."""
        return None if self.annotations == NONE else Path(self.annotations)


@dataclass(frozen=True)
class EmbedPlan:
    """What `EmbedOptions` came to on the device of a job: nothing is ``auto`` after this."""

    dtype: str
    output_dtype: str
    arrays: tuple[str, ...]
    attention: str  # a backend
    kernels: str  # of the steps between products: torch, triton, or triton+gelu
    token_budget: int
    reasons: dict[str, str]  # why, by the name of what was resolved
    float_products: tuple[str, ...] = ()  # in int8, kinds of products that are not

    def as_json(self) -> dict[str, Any]:
        """Return plain values by their names."""
        lists = {"arrays": list(self.arrays), "float_products": list(self.float_products)}
        return asdict(self) | lists

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EmbedPlan:
        """Return what `as_json` gave."""
        tuples = {name: tuple(content[name]) for name in ("arrays", "float_products")}
        return cls(**{**content, **tuples})
