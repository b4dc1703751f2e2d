"""Compare what the results hold of sampled records with the reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import plural
from packedesm.files import RECORD_DIGEST, expect, file_digest, read_record, write_record
from packedesm.options import ReferenceOptions, VerifyOptions
from packedesm.outputs import MARGINALS, OUTPUTS, PERPLEXITY, Array
from packedesm.paths import Paths
from packedesm.reference.comparison import Distance, Limits, compare
from packedesm.reference.vectors import PARTS, Protein, ReferenceVectors
from packedesm.report.certificate import certify
from packedesm.report.stored import Stored

logger = logging.getLogger(__name__)

REFERENCE = "reference"  # what records are compared with, or `MARGINALS`: the run's own
_MOST_TOLD = 20  # rows


def verify(paths: Paths, options: VerifyOptions, *, shards: int) -> dict[str, Any]:
    """Compare all merged arrays of the sample with the reference, and write verification.json.

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
        distance are None where they are not numbers, which counts as missed (a cosine also where
        lines are no vectors). ``records`` holds each comparison: of what with what (``against``:
        the reference, or of a pseudo-perplexity the run's own masked marginals, of which the
        reference has a few places), and ``absolute``, the largest difference of one number, which
        decides nothing. ``sequences`` counts the proteins of which something was compared with the
        reference. ``arrays`` sums up the comparisons of each array: the worst, and its row; those
        with the run's own marginals have an entry of their own. ``certificate`` tells what the
        number format does to vectors of proteins, see `packedesm.report.certificate.certify`; it
        decides nothing. ``worst`` holds the smallest cosine and the largest distance (None before
        any number), and the row and array of the comparison that is furthest off; of those with own
        marginals the ones that missed alone are asked. ``masked_places`` counts the places where
        masked marginals were compared. ``not_compared`` says what of the sample was left out, and
        why. ``replaced`` names the records whose reference does not fit into memory, and the row
        that was taken instead, None if none was left. ``drawn`` tells how many records were to be
        verified, and why so many, see `packedesm.reference.vectors.Drawn`; None if none.

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
    made = [*map(Array.named, runs[0].plan.arrays)]
    stored = Stored(paths, made)
    records = [*_comparisons(stored, proteins, limits)]
    passed = all(record["passed"] for record in records)
    if not passed:
        _check_arrays(paths)
    result = {
        "passed": passed if records else None,
        "sequences": len({record["row"] for record in records if _is_reference(record)}),
        **asdict(limits),
        "reference": parts[0].program,
        "worst": _worst(records),
        "arrays": _summaries(made, records) if records else [],
        "certificate": certify(stored, proteins, made),
        "records": records,
        "masked_places": sum(len(protein.positions) for protein in proteins),
        "not_compared": _not_compared(made, proteins, records),
        "replaced": [told for part in parts for told in part.replaced],
        "drawn": parts[0].drawn and asdict(parts[0].drawn),
        "options": options.as_config(),
        "seconds": time.perf_counter() - start,
        "reference_seconds": sum(part.seconds for part in parts),
        "made_from": [read_record(paths.merging)[RECORD_DIGEST]],
    }
    for said in result["not_compared"]:
        logger.warning("verification: %s", said)
    write_record(paths.verification, result)
    return result


def _comparisons(
    stored: Stored, proteins: Iterable[Protein], limits: Limits
) -> Iterator[dict[str, Any]]:
    """Yield what verification.json says of each array of each protein."""
    for protein in proteins:
        for name, expected in protein.vectors.items():
            array = Array.named(name)
            if not stored.has(array):  # what a job alone compares, before masked passes
                continue
            distance = compare(stored.of(array, protein), expected, limits, array)
            yield _record(protein, array, distance, against=REFERENCE)
        if protein.positions and (marginals := stored.whole_marginals(protein)) is not None:
            array = Array(OUTPUTS[PERPLEXITY])
            expected = np.exp(-marginals.mean())
            distance = compare(stored.of(array, protein), expected, limits, array)
            yield _record(protein, array, distance, against=MARGINALS)


def _record(protein: Protein, array: Array, distance: Distance, against: str) -> dict[str, Any]:
    of = {"array": array.name, "output": array.output.name, "layer": array.layer}
    return {**protein.facts, **of, "against": against, **asdict(distance)}


def _is_reference(record: dict[str, Any]) -> bool:
    return bool(record["against"] == REFERENCE)


def _summaries(made: Iterable[Array], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the comparisons of each array come to, one entry for each thing they are with."""
    compared = {(record["array"], record["against"]) for record in records}
    return [
        _summary(array, against, records)
        for array in made
        for against in (REFERENCE, MARGINALS)
        if against == REFERENCE or (array.name, against) in compared
    ]


def _summary(array: Array, against: str, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what the comparisons of an array with one thing come to; ``compared`` may be 0."""
    mine = [r for r in records if (r["array"], r["against"]) == (array.name, against)]
    furthest: dict[str, Any] = max(mine, key=_error, default={})
    cosines = [record["cosine"] for record in mine if record["cosine"] is not None]
    return {
        **{"array": array.name, "output": array.output.name, "layer": array.layer},
        "against": against,
        "compared": len(mine),
        **{key: furthest.get(key) for key in ("relative_l2", "absolute", "row")},
        "cosine": min(cosines, default=None),
        "passed": all(record["passed"] for record in mine) if mine else None,
    }


def _not_compared(
    made: Iterable[Array], proteins: Sequence[Protein], records: Sequence[dict[str, Any]]
) -> list[str]:
    """Return, in words, what of the sample was not compared with the reference."""
    said = []
    sampled = {protein.row for protein in proteins}
    for array in made:
        mine = [record for record in records if record["array"] == array.name]
        missing = sampled - {record["row"] for record in mine if _is_reference(record)}
        left = {protein.row for protein in proteins if array.name in protein.left_out} & missing
        if left:
            said.append(
                f"{_of(array, left)} not compared: fair-esm's attention weights do not fit into "
                "this memory"
            )
        if not (rest := missing - left):
            continue
        if array.output.name != PERPLEXITY:
            said.append(f"{_of(array, rest)} not compared: fair-esm did not compute it")
            continue
        own = rest & {record["row"] for record in mine}
        said.append(
            f"{_of(array, rest)} not compared with fair-esm, which takes a pass for each residue: "
            "too many of them in all"
            + (f"; {len(own)} compared with the run's own masked marginals" if own else "")
        )
    return said


def _of(array: Array, rows: Iterable[int]) -> str:
    """Return the words for an array of some proteins, the first of which are named."""
    found = [*map(str, sorted(rows))]
    more = f" and {len(found) - _MOST_TOLD} more" if len(found) > _MOST_TOLD else ""
    told = f"{'row' if len(found) == 1 else 'rows'} {', '.join(found[:_MOST_TOLD])}{more}"
    return f"{array.name} of {plural(len(found), 'protein')} ({told})"


def _check_arrays(paths: Paths) -> None:
    """Raise Damaged if the arrays that missed are not those that were merged: then that is why."""
    for name, digest in read_record(paths.merging)["sha256"].items():
        expect(paths.root / name, file_digest(paths.root / name), digest)


def _error(record: dict[str, Any]) -> float:
    return np.inf if record["relative_l2"] is None else record["relative_l2"]


def _worst(compared: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what is furthest off; agreement with own marginals is none with the reference."""
    records = [record for record in compared if _is_reference(record) or not record["passed"]]
    furthest = max(records, key=_error, default={})
    cosines = [record["cosine"] for record in records if record["cosine"] is not None]
    return {
        "cosine": min(cosines, default=None),
        **{key: furthest.get(key) for key in ("relative_l2", "row", "array", "output")},
    }
