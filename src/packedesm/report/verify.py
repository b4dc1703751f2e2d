"""Compare sampled vectors of the results with their reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.files import RECORD_DIGEST, expect, file_digest, read_record, write_record
from packedesm.options import ReferenceOptions, VerifyOptions
from packedesm.paths import Paths
from packedesm.reference.comparison import Limits, compare
from packedesm.reference.vectors import PARTS, Protein, ReferenceVectors


def verify(paths: Paths, options: VerifyOptions, *, shards: int) -> dict[str, Any]:
    """Compare the merged vectors of the sample with the reference, and write verification.json.

    A miss is recorded, not raised: the evidence has to stay.

    Parameters
    ----------
    paths
        A sample whose vectors have been merged, and both parts of its reference computed.
    options
        What is compared, and what passes: the cosine of each residue for ``residue``, the distance
        over all numbers of a record; ``auto`` takes the largest distance from
        `packedesm.reference.comparison.AUTO_LIMITS`.
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

    Raises
    ------
    Fault
        If the reference is of other records, weights or options than the results.
    """
    start = time.perf_counter()
    runs = [ShardRun.read(paths.shard_run(shard)) for shard in range(shards)]
    dtypes = {dtype for run in runs for dtype in (run.plan.dtype, run.plan.output_dtype)}
    limits = Limits.of(options.min_cosine, options.max_relative_l2, dtypes)
    asked = ReferenceOptions(
        runs[0].options.length, runs[0].plan.arrays, options.sequences, options.seed
    )
    sha256 = runs[0].checkpoint.sha256
    parts = [ReferenceVectors.read(paths, part, asked, sha256) for part in PARTS]
    proteins = sorted((p for part in parts for p in part.proteins), key=lambda p: p.row)
    records = [
        comparison for protein in proteins for comparison in _comparisons(paths, protein, limits)
    ]
    passed = all(record["passed"] for record in records)
    if not passed:
        _check_arrays(paths)
    result = {
        "passed": passed if records else None,
        "sequences": len(proteins),
        **asdict(limits),
        "reference": parts[0].program,
        "worst": _worst(records),
        "records": records,
        "replaced": [told for part in parts for told in part.replaced],
        "options": options.as_config(),
        "seconds": time.perf_counter() - start,
        "reference_seconds": sum(part.seconds for part in parts),
        "made_from": [read_record(paths.merging)[RECORD_DIGEST]],
    }
    write_record(paths.verification, result)
    return result


def _comparisons(paths: Paths, protein: Protein, limits: Limits) -> Iterator[dict[str, Any]]:
    """Yield what verification.json says of each output of a protein."""
    for output, expected in protein.vectors.items():
        distance = compare(_stored(paths, output, protein.row), expected, limits)
        yield {**protein.facts, "output": output, **asdict(distance)}


def _stored(paths: Paths, output: str, row: int) -> np.ndarray:
    """Return the vector of one record in the results, or of each of its residues."""
    array = np.load(paths.array(output), mmap_mode="r")
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
