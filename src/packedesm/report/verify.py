"""Compare sampled vectors of a finished run with fair-esm, one protein at a time."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pyfaidx import Fasta

from packedesm.embedding.record import ShardRun
from packedesm.esm2.checkpoints import reading_weights
from packedesm.esm2.registry import Checkpoint
from packedesm.files import RECORD_DIGEST, expect, read_record, write_record
from packedesm.options import LengthPolicy, VerifyOptions
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.report.reference import Reference
from packedesm.sequences.arrow import read_columns, to_numpy
from packedesm.sequences.index import read_rows
from packedesm.sequences.summary import reading_sharded

# Largest relative L2 distance that passes under `auto`, coarsest format last. Rounding alone gives
# about 1e-6 in float32, 0.0014 in float16 and 0.011 in bfloat16 over the depth of ESM-2.
AUTO_LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.02}


def choose(lengths: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose records spread over the lengths, the shortest and the longest among them.

    The records are sorted by length and cut into strata of equal size; one record is drawn from
    each, so that rare lengths are met as the quantiles meet them.

    Parameters
    ----------
    lengths : ndarray of int, shape (N,)
        Residues of each record.
    count
        How many records to choose; all of them if there are no more.
    seed
        The same seed chooses the same records.

    Returns
    -------
    ndarray of int64, shape (min(count, N),)
        Positions in `lengths`, ascending. A single one is the longest.
    """
    order = np.argsort(lengths, kind="stable")
    if count >= len(order):
        return np.arange(len(order))
    if count < 2:
        return order[len(order) - count :]
    edges = np.linspace(1, len(order) - 1, count - 1).astype(np.int64)
    drawn = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return np.sort(order[np.concatenate(([0], drawn, [len(order) - 1]))])


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
        of the comparison that is furthest off.
    """
    start = time.perf_counter()
    runs = [ShardRun.read(paths.shard_run(shard)) for shard in range(shards)]
    limits = (options.min_cosine, _limit(options.max_relative_l2, runs))
    records: list[dict[str, Any]] = []
    if options.sequences:
        with reading_weights(checkpoint) as path:
            reference = Reference(path)
        policy, outputs = runs[0].options.length, runs[0].plan.outputs
        sample = _sample(paths, shards, options.sequences, options.seed)
        with Progress("verifying", len(sample), "proteins") as progress:
            for record, sequence in sample:
                expected = reference_vectors(reference, sequence, policy, outputs)
                for output in outputs:
                    found = _stored(paths, output, record["row"])
                    result = compare(found, expected[output], *limits)
                    records.append({**record, "output": output, **result})
                progress.add(1)
    result = {
        "passed": all(record["passed"] for record in records) if records else None,
        "sequences": len({record["row"] for record in records}),
        "min_cosine": limits[0],
        "max_relative_l2": limits[1],
        "reference": f"fair-esm {metadata.version('fair-esm')} float32, one protein at a time",
        "worst": _worst(records),
        "records": records,
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


def _sample(paths: Paths, shards: int, count: int, seed: int) -> list[tuple[dict[str, Any], str]]:
    """Return each sampled row's facts and its sequence; Damaged if that is not the index's."""
    with reading_sharded(paths, paths.shard_index):
        lengths = to_numpy(read_columns(paths.shard_index, ["length"])["length"])
        facts = list(read_rows(paths.shard_index, choose(lengths, count, seed)))
    sources = [
        fact["row"] if fact["duplicate_of"] is None else fact["duplicate_of"] for fact in facts
    ]
    sequences = _read_sequences(paths, shards, sources)
    sample = []
    for fact, source in zip(facts, sources, strict=True):
        path, sequence = sequences[source]
        expect(path, hashlib.sha256(sequence.encode()).hexdigest(), fact["sha256"])
        record = {key: fact[key] for key in ("row", "id", "length", "embedded_length")}
        sample.append((record, sequence))
    return sample


def _read_sequences(paths: Paths, shards: int, rows: Iterable[int]) -> dict[int, tuple[Path, str]]:
    """Read records of the shard FASTAs by row, each with its file.

    Through pyfaidx, not our own reader: what is compared is to be read by other code.
    """
    held = [shard for shard in range(shards) if paths.shard_fai(shard).stat().st_size]
    firsts = [_first_row(paths.shard_fai(shard)) for shard in held]
    sequences: dict[int, tuple[Path, str]] = {}
    wanted = np.array(sorted(set(rows)))
    places = np.searchsorted(firsts, wanted, side="right") - 1
    for place in np.unique(places):
        path, fai = paths.shard_fasta(held[place]), paths.shard_fai(held[place])
        with (
            reading_sharded(paths, fai),
            Fasta(str(path), as_raw=True, build_index=False) as fasta,
        ):
            sequences |= {int(row): (path, fasta[str(row)][:]) for row in wanted[places == place]}
    return sequences


def _first_row(fai: Path) -> int:
    with fai.open(encoding="ascii") as handle:
        return int(handle.readline().split("\t")[0])


def _stored(paths: Paths, output: str, row: int) -> np.ndarray:
    """Return the vector of one record in the results, or of each of its residues."""
    array = np.load(paths.vectors(output), mmap_mode="r")
    if output != "residue":
        return array[row]
    start, stop = np.load(paths.residue_offsets, mmap_mode="r")[row : row + 2]
    return array[start:stop]


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
