"""One use of the vectors: is the nearest protein one of the same family?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from masking import STANDARD
from packs import LONGEST, packs

from packedesm.alphabet import encode
from packedesm.embedding.pooling import pool
from packedesm.esm2.model import PackedESM2

_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_HEDGE = re.compile(r"^(putative|probable|predicted|possible)\s+")
_SILENT = re.compile(r"uncharacteri[sz]ed|hypothetical|^protein$|unnamed|expressed protein|^$")


def family(name: str) -> str | None:
    """Return the family that a UniProt name tells, or None if it tells none.

    Lower case, without what stands in brackets, without words of doubt at the beginning, without
    what follows a comma and a blank (isoform, organelle), and without a ``-like`` at the end.
    """
    name = _ASIDE.sub("", name.lower()).split(", ")[0].strip()
    name = _HEDGE.sub("", name).removesuffix("-like").strip()
    return None if _SILENT.search(name) else name


def mean_vectors(encoder: PackedESM2, sequences: Sequence[bytes]) -> np.ndarray:
    """Return the mean vector of each sequence, float32 (N, width)."""
    vectors = np.empty((len(sequences), encoder.geometry.width), np.float32)
    for items, batch in packs(sequences):
        with torch.inference_mode():
            hidden = encoder.forward_packed(**batch.inputs)
            vectors[items] = pool(hidden, batch, ["mean"], "float32")["mean"].numpy()
    return vectors


def compositions(sequences: Sequence[bytes]) -> np.ndarray:
    """Return the share of each of the 20 standard residues, float64 (N, 20)."""
    counts = [np.bincount(encode(s[:LONGEST]), minlength=33)[STANDARD] for s in sequences]
    return np.array(counts) / np.maximum(np.sum(counts, 1, keepdims=True), 1)


def nearest(vectors: np.ndarray, *, centred: bool) -> np.ndarray:
    """Return the index of each row's nearest other row by cosine, int64 (N,).

    With `centred` the mean of all rows is subtracted first: what all proteins share does not tell
    them apart.
    """
    vectors = vectors.astype(np.float64) - (vectors.mean(0) if centred else 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(1)


def queries(labels: np.ndarray) -> np.ndarray:
    """Return which rows share their label with another row, bool (N,)."""
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return sizes[group] > 1


def agreement(vectors: np.ndarray, labels: np.ndarray, *, centred: bool) -> float:
    """Return how often the nearest row has the same label, among rows for which one can."""
    asked = queries(labels)
    return float((labels == labels[nearest(vectors, centred=centred)])[asked].mean())


def chance(labels: np.ndarray) -> float:
    """Return what `agreement` is on average if another row is drawn at random."""
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return float(((sizes - 1) / (len(labels) - 1))[group][queries(labels)].mean())
