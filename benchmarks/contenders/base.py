"""What every contender offers, and the padded batches that most of them compute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from packedesm import alphabet


@dataclass(frozen=True)
class Task:
    """What a contender is to work with."""

    checkpoint: Path  # in fair-esm's layout
    device: str  # cpu or cuda
    threads: int
    scratch: Path  # a folder of this contender's own


class Contender:
    """One way from protein sequences to mean vectors."""

    packages: tuple[str, ...] = ("torch",)  # whose versions are recorded
    apart: float = 0.0  # seconds of the last `embed` that do not count, such as loading weights

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Put `sequences` into memory as this contender likes them; is not timed."""
        raise NotImplementedError

    def embed(self) -> np.ndarray:
        """Embed what was prepared: float32 (N, width), mean over residues, in input order."""
        raise NotImplementedError


def private_packages(name: str) -> None:
    """Prefer the packages of benchmarks/.venv/NAME, which clash with those of the others."""
    folder = Path(sys.prefix) / name
    if folder.is_dir():
        sys.path.insert(0, str(folder))


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded to the longest of them."""

    items: list[int]
    ids: torch.Tensor  # int64 (B, L)
    lengths: torch.Tensor  # int64 (B,), residues


class PaddedContender(Contender):
    """A model that computes padded batches: `hidden` is all that differs.

    `order` is ``sorted`` (by length, which pads least) or ``arrival``.
    """

    def __init__(self, device: str, order: str = "sorted") -> None:
        self.device = device
        self.order = order
        self.batches: list[PaddedBatch] = []

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last representation (B, L, width) of token ids (B, L)."""
        raise NotImplementedError

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Cut the sequences into batches of at most `budget` tokens and pad them."""
        self.batches = [padded_batch(sequences, items) for items in self.plan(sequences, budget)]
        if self.device == "cuda":
            self.batches = [
                PaddedBatch(b.items, b.ids.pin_memory(), b.lengths.pin_memory())
                for b in self.batches
            ]

    def plan(self, sequences: Sequence[str], budget: int) -> list[list[int]]:
        """Return the items of each batch."""
        return padded_plan([len(s) + 2 for s in sequences], budget, self.order == "sorted")

    @torch.inference_mode()
    def embed(self) -> np.ndarray:
        """Compute all batches; nothing waits for a GPU before the end."""
        pooled = [
            mean_over_residues(
                self.hidden(batch.ids.to(self.device, non_blocking=True)),
                batch.lengths.to(self.device, non_blocking=True),
            )
            for batch in self.batches
        ]
        return in_input_order(torch.cat(pooled).cpu(), [i for b in self.batches for i in b.items])


def padded_plan(lengths: Sequence[int], budget: int, length_sorted: bool) -> list[list[int]]:
    """Return the items of padded batches: members times the longest stays within `budget`.

    Sorted ones go from the longest to the shortest, so that memory is asked for once.
    """
    order = range(len(lengths))
    batches: list[list[int]] = []
    longest = 0
    for item in sorted(order, key=lambda i: -lengths[i]) if length_sorted else order:
        longest = max(longest, lengths[item])
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(item)
        else:
            batches.append([item])
            longest = lengths[item]
    return batches


def padded_batch(sequences: Sequence[str], items: list[int]) -> PaddedBatch:
    """Tokenise some of the sequences and pad them."""
    lengths = torch.tensor([len(sequences[item]) for item in items])
    ids = np.full((len(items), int(lengths.max()) + 2), alphabet.PAD, np.int64)
    ids[:, 0] = alphabet.CLS
    for row, item in zip(ids, items, strict=True):
        end = len(sequences[item]) + 1
        row[1:end] = alphabet.encode(sequences[item].encode("ascii"))
        row[end] = alphabet.EOS
    return PaddedBatch(items, torch.from_numpy(ids), lengths)


def mean_over_residues(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean of `hidden` (B, L, width) over residues, float32 (B, width)."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    weights = ((places > 0) & (places <= lengths[:, None])).float() / lengths[:, None]
    return torch.bmm(weights[:, None], hidden.float()).squeeze(1)


def in_input_order(vectors: torch.Tensor, items: Sequence[int]) -> np.ndarray:
    """Return `vectors`, whose rows belong to `items`, ordered by item."""
    ordered = np.empty(vectors.shape, np.float32)
    ordered[np.asarray(items)] = vectors.numpy()
    return ordered
