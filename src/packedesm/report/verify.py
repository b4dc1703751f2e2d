"""Compare sampled vectors of a finished run with fair-esm, one protein at a time."""

import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.esm2.checkpoints import reading_weights
from packedesm.esm2.registry import Checkpoint
from packedesm.files import RECORD_DIGEST, expect, file_digest, read_record, write_record
from packedesm.options import LengthPolicy, VerifyOptions
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.report.reference import DoesNotFitError, Reference
from packedesm.report.sample import Sample

# Largest relative L2 distance that passes under `auto`, coarsest format last. Rounding alone gives
# about 1e-6 in float32, 0.0014 in float16 and 0.011 in bfloat16 over the depth of ESM-2.
AUTO_LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.02}


def verify(
    paths: Paths, checkpoint: Checkpoint, options: VerifyOptions, *, shards: int
) -> dict[str, Any]:
    """Embed sampled records again with the reference and write verification.json.

    The sample is drawn from all rows, repeats of a sequence included, because each has a vector
    that somebody will use. Sequences are read with pyfaidx and checked against the digest in the
    index, then split, averaged and pooled here in float64, apart from the code that made the
    vectors. A miss is recorded, not raised: the evidence has to stay.

    Parameters
    ----------
    paths
        A sample whose vectors have been merged.
    checkpoint
        The one that the run used.
    options
        What is compared, and what passes: the cosine of each residue for ``residue``, the distance
        over all numbers of a record; ``auto`` takes the largest distance from `AUTO_LIMITS`.
    shards
        The number of shards.

    Returns
    -------
    dict
        The content of verification.json. ``passed`` is None if nothing was compared; cosine and
        distance are None where they are not numbers, which counts as missed. ``worst`` holds the
        smallest cosine and the largest distance (None before any number), and the row and output
        of the comparison that is furthest off. ``replaced`` names the records whose reference does
        not fit into memory, and the row that was taken instead, None if none was left.
    """
    start = time.perf_counter()
    runs = [ShardRun.read(paths.shard_run(shard)) for shard in range(shards)]
    limits = (options.min_cosine, _limit(options.max_relative_l2, runs))
    records: list[dict[str, Any]] = []
    replaced: list[dict[str, Any]] = []
    if options.sequences:
        with reading_weights(checkpoint) as path:
            reference = Reference(path, checkpoint.base)
        policy, outputs = runs[0].options.length, runs[0].plan.outputs
        sample = Sample(paths, shards, options.sequences, options.seed)
        with Progress("verifying", len(sample), "proteins") as progress:
            for record, sequence in sample:
                progress.add(1)
                try:
                    expected = reference_vectors(reference, sequence, policy, outputs)
                except (DoesNotFitError, MemoryError):
                    replaced.append(sample.replace(record))
                    continue
                for output in outputs:
                    found = _stored(paths, output, record["row"])
                    result = compare(found, expected[output], *limits)
                    records.append({**record, "output": output, **result})
        if not records:
            raise Fault(
                f"{paths.root}: the reference of no sampled protein fits into memory, so nothing "
                "can be verified; the vectors are kept: run again with more memory, or with "
                "verify.sequences 0"
            )
        if not all(record["passed"] for record in records):
            _check_arrays(paths)
    result = {
        "passed": all(record["passed"] for record in records) if records else None,
        "sequences": len({record["row"] for record in records}),
        "min_cosine": limits[0],
        "max_relative_l2": limits[1],
        "reference": f"fair-esm {metadata.version('fair-esm')} float32, one protein at a time",
        "worst": _worst(records),
        "records": records,
        "replaced": replaced,
        "options": options.as_config(),
        "seconds": time.perf_counter() - start,
        "made_from": [read_record(paths.merging)[RECORD_DIGEST]],
    }
    write_record(paths.verification, result)
    return result


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


def compare(
    found: np.ndarray, expected: np.ndarray, min_cosine: float, max_relative_l2: float
) -> dict[str, Any]:
    """Compare one vector, or the (L, D) vectors of the residues of one protein, with the reference.

    Returns
    -------
    dict
        ``cosine`` (of the worst residue), ``relative_l2`` (over all numbers), ``passed``.
        The figures are None if a number is not finite or the shapes differ.
    """
    found = np.asarray(found, dtype=np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return {"cosine": None, "relative_l2": None, "passed": False}
    relative_l2 = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    # A vector of zeros points nowhere: its cosine counts as zero.
    cosines = (found * expected).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    cosine = float(np.min(cosines))
    passed = cosine >= min_cosine and relative_l2 <= max_relative_l2
    return {"cosine": cosine, "relative_l2": relative_l2, "passed": passed}


def _limit(max_relative_l2: float | str, runs: list[ShardRun]) -> float:
    if not isinstance(max_relative_l2, str):
        return max_relative_l2
    dtypes = {dtype for run in runs for dtype in (run.plan.dtype, run.plan.output_dtype)}
    return max(AUTO_LIMITS[dtype] for dtype in dtypes)


def _stored(paths: Paths, output: str, row: int) -> np.ndarray:
    """Return the vector of one record in the results, or of each of its residues."""
    array = np.load(paths.vectors(output), mmap_mode="r")
    if output != "residue":
        return array[row]
    start, stop = np.load(paths.residue_offsets, mmap_mode="r")[row : row + 2]
    return array[start:stop]


def _check_arrays(paths: Paths) -> None:
    """Raise Damaged if the arrays that missed are not those that were merged: then that is why."""
    for name, digest in read_record(paths.merging)["sha256"].items():
        expect(paths.root / name, file_digest(paths.root / name), digest)


def _worst(records: list[dict[str, Any]]) -> dict[str, Any]:
    if not records:
        return {"cosine": None, "relative_l2": None, "row": None, "output": None}

    def distance(record: dict[str, Any]) -> float:
        return np.inf if record["relative_l2"] is None else record["relative_l2"]

    furthest = max(records, key=distance)
    known = [record for record in records if record["cosine"] is not None]
    return {
        "cosine": min((record["cosine"] for record in known), default=None),
        "relative_l2": furthest["relative_l2"],
        "row": furthest["row"],
        "output": furthest["output"],
    }
