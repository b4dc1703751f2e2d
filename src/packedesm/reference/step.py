"""Compute the reference vectors of a sample: fair-esm, float32, one protein at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from packedesm.device.memory import keep_freed_memory
from packedesm.errors import Fault
from packedesm.esm2.checkpoints import reading_weights
from packedesm.esm2.registry import Checkpoint
from packedesm.options import ReferenceOptions
from packedesm.outputs import MARGINALS, PAIR, PERPLEXITY, Array, needs
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.reference.expected import reference_vectors
from packedesm.reference.memory import DoesNotFitError
from packedesm.reference.model import Reference
from packedesm.reference.sample import Sample
from packedesm.reference.threads import side_by_side
from packedesm.reference.vectors import FIRST, Drawn, Protein, ReferenceVectors
from packedesm.reference.whole_proteins import WholeProteins

logger = logging.getLogger(__name__)

_PROGRAM = f"fair-esm {metadata.version('fair-esm')} float32, one protein at a time"
# Each place that is masked takes a pass. Of a protein so many are drawn; of the shortest all, which
# the pseudo-perplexity takes: see `packedesm.reference.whole_proteins`.
_PLACES = 4


def write_reference(
    paths: Paths,
    checkpoint: Checkpoint,
    options: ReferenceOptions,
    part: str,
    *,
    shards: int,
    threads: int = 1,
) -> ReferenceVectors:
    """Compute the reference vectors of one part of the sample, and write them; once.

    The sample is drawn from all rows, repeats of a sequence included, because each has a vector
    that somebody will use. Sequences are read with pyfaidx and checked against the digest in the
    index, then split, averaged and pooled in float64, apart from the code that makes the vectors
    of a run: see `packedesm.reference.expected`.

    What comes from masked passes is computed with the rest, for all proteins, at a few places of
    each; where nothing else is asked for, the first have logits, for the first check of jobs. The
    contacts of those whose attention weights do not fit into memory are left out.

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
    threads
        How many proteins may be computed at the same time, each by one thread, which decides
        nothing.

    Raises
    ------
    Fault
        If the reference of no sampled record fits into memory.
    """
    with suppress(FileNotFoundError, Fault):  # or it is damaged, or of something else
        return ReferenceVectors.read(paths, part, options, checkpoint.sha256)
    start = time.perf_counter()
    drawn: Drawn | None = None
    proteins: tuple[Protein, ...] = ()
    replaced: tuple[dict[str, Any], ...] = ()
    if options.sequences:
        sample = Sample(paths, shards, options, checkpoint.geometry.width)
        drawn = sample.drawn
        wanted = _Wanted([*map(Array.named, options.arrays)])
        if part == FIRST:
            # What jobs check before they begin; of masked passes what they come from.
            arrays = [array for array in wanted.arrays if not array.masked] or [_LOGITS]
            wanted = replace(wanted, arrays=arrays, masked=False)
            todo = sample.first()
            logger.info("to be verified: %s", drawn.in_words())
        else:
            before = ReferenceVectors.read(paths, FIRST, options, checkpoint.sha256)
            done = [protein.row for protein in before.proteins]
            wanted = replace(wanted, done=frozenset(done))
            todo = sample.without([] if wanted.masks else done)
        if todo:
            proteins, replaced = _embedded(checkpoint, sample, todo, options, wanted, threads)
        if part != FIRST and not proteins and not before.proteins:
            raise Fault(
                f"{paths.root}: the reference of no sampled protein fits into memory, so nothing "
                "can be verified; the vectors are kept: run again with more memory, or with "
                "verify.sequences 0"
            )
    seconds = time.perf_counter() - start
    vectors = ReferenceVectors(proteins, replaced, _PROGRAM, seconds, drawn)
    vectors.write(paths, part, options, checkpoint.sha256)
    return vectors


_LOGITS = Array.named("logits")


@dataclass(frozen=True)
class _Wanted:
    """What one part of the reference holds of each record.

    Attributes
    ----------
    arrays
        All that the run makes.
    masked
        Whether those from masked passes are among it: they are left to the rest.
    done
        Rows of which an earlier part holds the others.
    """

    arrays: Sequence[Array]
    masked: bool = True
    done: frozenset[int] = frozenset()

    @property
    def masks(self) -> bool:
        """Whether there is something to compute of records that are done."""
        return self.masked and any(array.masked for array in self.arrays)

    def of(
        self, record: Mapping[str, Any], seed: int, *, whole: bool
    ) -> tuple[list[Array], tuple[int, ...]]:
        """Return the arrays to compute of a record, and the places where it is masked.

        All places are if it is done as a `whole`; its pseudo-perplexity is computed only then.
        """
        row, residues = record["row"], record["embedded_length"]
        marginals = any(array.output.name == MARGINALS for array in self.arrays)
        found = [
            array
            for array in self.arrays
            if (self.masked and (whole or array.output.name != PERPLEXITY)) or not array.masked
            if array.masked or row not in self.done
        ]
        places = np.arange(residues)
        if not whole:
            drawn = np.random.default_rng((seed, row))
            places = np.sort(drawn.choice(residues, min(residues, _PLACES), replace=False))
        return found, tuple(places.tolist()) if self.masked and marginals else ()


class _Task(NamedTuple):
    record: dict[str, Any]
    sequence: str
    arrays: Sequence[Array]
    places: tuple[int, ...]


def _embedded(
    checkpoint: Checkpoint,
    sample: Sample,
    todo: Sequence[int],
    options: ReferenceOptions,
    wanted: _Wanted,
    threads: int,
) -> tuple[tuple[Protein, ...], tuple[dict[str, Any], ...]]:
    """Return the proteins of some rows, and what was said of those that were replaced.

    Those whose reference does not fit into memory are left out of the first part.
    """
    proteins: list[Protein] = []
    replaced: list[dict[str, Any]] = []
    outputs = {array.output.name for array in wanted.arrays}
    alone = PERPLEXITY in outputs and MARGINALS not in outputs
    wholes = WholeProteins(options.length, sample.masked_tokens, one=alone)
    keep_freed_memory()
    with reading_weights(checkpoint) as path:
        heads = needs(outputs)
        reference = Reference(path, checkpoint.base, heads, checkpoint.regression)
    with (
        side_by_side(reference, min(threads, len(todo))) as each,
        Progress("computing the reference of", len(todo), "proteins") as progress,
    ):
        while todo:
            again: list[int] = []
            # The longest first, so that the threads end together.
            read = sorted(sample.read(todo), key=lambda found: -found[0]["embedded_length"])
            whole = wholes.take(record for record, _sequence in read)
            tasks = [
                _Task(r, text, *wanted.of(r, options.seed, whole=r["row"] in whole))
                for r, text in read
            ]
            for task, found in zip(tasks, each(partial(_fitting, options), tasks), strict=True):
                progress.add(1)
                if found is not None:
                    about = {**task.record, "sequence": task.sequence, "positions": task.places}
                    proteins.append(Protein(**about, **found))
                    continue
                wholes.drop(task.record["row"])
                if wanted.masked and task.record["row"] not in wanted.done:
                    told = sample.replace(task.record)
                    replaced.append(told)
                    again += [] if told["by"] is None else [told["by"]]
            todo = again
    return tuple(sorted(proteins, key=lambda protein: protein.row)), tuple(replaced)


def _fitting(options: ReferenceOptions, reference: Reference, task: _Task) -> dict[str, Any] | None:
    """Return the vectors of a protein, and which arrays are left out: contacts, if need be.

    fair-esm holds the attention weights of all layers for contacts, the square of the length in
    each; for the rest it needs little. None where that does not fit into memory either.
    """
    kept = [array for array in task.arrays if array.per != PAIR]
    left_out = tuple(array.name for array in task.arrays if array.per == PAIR)
    for arrays, missing in ((task.arrays, ()), (kept, left_out)):
        with suppress(DoesNotFitError, MemoryError):
            asked = (reference, task.sequence, options.length, arrays, task.places)
            return {"vectors": reference_vectors(*asked), "left_out": missing}
        if not kept or not left_out:
            break
    return None
