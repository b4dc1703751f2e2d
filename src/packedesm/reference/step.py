"""Compute the reference vectors of a sample: fair-esm, float32, one protein at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import numpy as np

from packedesm.errors import Fault
from packedesm.esm2.checkpoints import reading_weights
from packedesm.esm2.registry import Checkpoint
from packedesm.options import LengthPolicy, ReferenceOptions
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.reference.model import DoesNotFitError, Reference
from packedesm.reference.sample import Sample
from packedesm.reference.vectors import FIRST, Protein, ReferenceVectors

logger = logging.getLogger(__name__)

_PROGRAM = f"fair-esm {metadata.version('fair-esm')} float32, one protein at a time"


def write_reference(
    paths: Paths, checkpoint: Checkpoint, options: ReferenceOptions, part: str, *, shards: int
) -> ReferenceVectors:
    """Compute the reference vectors of one part of the sample, and write them; once.

    The sample is drawn from all rows, repeats of a sequence included, because each has a vector
    that somebody will use. Sequences are read with pyfaidx and checked against the digest in the
    index, then split, averaged and pooled here in float64, apart from the code that makes the
    vectors of a run.

    Parameters
    ----------
    paths
        A sample that was sharded.
    part
        `FIRST`: a few short and middling records and none that takes long. Those whose reference
        does not fit into memory are left to the rest, which replaces them by shorter ones; it is
        written after the first.
    shards
        The number of shards.

    Raises
    ------
    Fault
        If the reference of no sampled record fits into memory.
    """
    with suppress(FileNotFoundError, Fault):  # or it is damaged, or of something else
        return ReferenceVectors.read(paths, part, options, checkpoint.sha256)
    start = time.perf_counter()
    proteins: tuple[Protein, ...] = ()
    replaced: tuple[dict[str, Any], ...] = ()
    if options.sequences:
        sample = Sample(paths, shards, options.sequences, options.seed)
        if part == FIRST:
            todo = sample.first(options.length)
        else:
            before = ReferenceVectors.read(paths, FIRST, options, checkpoint.sha256)
            todo = sample.without([protein.row for protein in before.proteins])
        if todo:
            proteins, replaced = _embedded(checkpoint, sample, todo, options, replace=part != FIRST)
        if part != FIRST and not proteins and not before.proteins:
            raise Fault(
                f"{paths.root}: the reference of no sampled protein fits into memory, so nothing "
                "can be verified; the vectors are kept: run again with more memory, or with "
                "verify.sequences 0"
            )
    seconds = time.perf_counter() - start
    vectors = ReferenceVectors(proteins, replaced, _PROGRAM, seconds)
    vectors.write(paths, part, options, checkpoint.sha256)
    return vectors


def _embedded(
    checkpoint: Checkpoint,
    sample: Sample,
    todo: Sequence[int],
    options: ReferenceOptions,
    *,
    replace: bool,
) -> tuple[tuple[Protein, ...], tuple[dict[str, Any], ...]]:
    """Return the proteins of some rows, and what was said of those that were replaced.

    Those whose reference does not fit into memory are left out, if they are not to `replace`.
    """
    proteins: list[Protein] = []
    replaced: list[dict[str, Any]] = []
    with reading_weights(checkpoint) as path:
        reference = Reference(path, checkpoint.base)
    with Progress("computing the reference of", len(todo), "proteins") as progress:
        while todo:
            again: list[int] = []
            for record, sequence in sample.read(todo):
                try:
                    vectors = reference_vectors(reference, sequence, options.length, options.arrays)
                except (DoesNotFitError, MemoryError):
                    if replace:
                        told = sample.replace(record)
                        replaced.append(told)
                        again += [] if told["by"] is None else [told["by"]]
                    continue
                finally:
                    progress.add(1)
                proteins.append(Protein(**record, sequence=sequence, vectors=vectors))
            todo = again
    return tuple(proteins), tuple(replaced)


def reference_vectors(
    reference: Reference, sequence: str, policy: LengthPolicy, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what the outputs of one protein should be, in float64.

    Where windows overlap a residue's vector is the mean over its windows, and ``cls`` is the mean
    over the windows' ``<cls>``.

    Returns
    -------
    dict
        Shape (D,) for ``mean``, ``cls`` and ``max``; (embedded residues, D) for ``residue``.
    """
    spans = policy.windows(len(sequence))
    tokens = [
        reference.representation(sequence[start:stop]).astype(np.float64) for start, stop in spans
    ]
    total = np.zeros((spans[-1][1], tokens[0].shape[1]))
    times = np.zeros((spans[-1][1], 1))
    for (start, stop), vectors in zip(spans, tokens, strict=True):
        total[start:stop] += vectors[1:-1]
        times[start:stop] += 1
    residues = total / times
    known = {
        "mean": lambda: residues.mean(axis=0),
        "max": lambda: residues.max(axis=0),
        "cls": lambda: np.mean([vectors[0] for vectors in tokens], axis=0),
        "residue": lambda: residues,
    }
    return {output: known[output]() for output in outputs}
