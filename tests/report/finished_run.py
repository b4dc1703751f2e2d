"""A small run as its embedding jobs leave it, and merged, for the tests of what comes after."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from packedesm.embedding.pack import PackStatistics, write_packs
from packedesm.embedding.record import Seconds, ShardRun
from packedesm.files import RECORD_DIGEST, file_digest, read_record, write_record
from packedesm.options import EmbedOptions, ReferenceOptions
from packedesm.outputs import Array
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from packedesm.paths import Paths
from packedesm.reference.vectors import FIRST, Drawn, ReferenceVectors
from packedesm.report.metrics import write_metrics
from packedesm.report.page import PLAIN, write_report
from packedesm.results.merge import merge_shards
from packedesm.sequences.shards import write_shards
from packedesm.sequences.summary import read_summary, written_digest
from tests.typed import options, shard_options, shard_run

FASTA = f">a one\n{'M' + 'A' * 39}\n>b\n{'M' + 'C' * 79}\n>c\n{'M' * 8}\n>d\n{'M' * 8}\n"
CONFIG = {"max_length": 60, "window_overlap": 20}
BUDGET = 100
PACK_SECONDS = 0.5  # each pack of the run took this long
DRAWN = Drawn(sequences=4, records=5, asked=16, share=0.09, most_share=0.1)


def write_run(
    root: Path, fasta: str, shards: int, *, run: dict | None = None, vectors=None, **config
) -> Paths:
    """Shard `fasta`, write what one job per shard would have recorded about itself, and merge.

    `run` are changes to the record of each job, see `tests.typed.shard_run`; `vectors` gives an
    array of some shape and dtype, random numbers if it is left out.
    """
    paths = Paths(root)
    source = root / "input.fasta"
    root.mkdir(parents=True, exist_ok=True)
    source.write_text(fasta, encoding="utf-8")
    config = CONFIG | config
    write_shards([source], paths, shard_options(**config), shards=shards, width=64)
    config.pop("deduplicate", None)
    for shard in range(shards):
        job = _write_job(paths, shard, options(EmbedOptions, **config), run or {})
        _write_arrays(paths, job, vectors or _random)
    merge_shards(paths, shards, job.plan.arrays)
    reference = ReferenceVectors((), (), "fair-esm", 0.0, DRAWN)
    reference.write(paths, FIRST, options(ReferenceOptions, **config), job.checkpoint.sha256)
    return paths


def written_anew(paths: Paths, path: Path) -> None:
    """Let a changed file of the sharder count as written by it."""
    summary = read_summary(paths)
    summary["sha256"][path.relative_to(paths.work).as_posix()] = file_digest(path)
    write_record(paths.sharding, summary)


def off(paths: Paths) -> None:
    """Write the verification.json of a run that was not verified."""
    worst = dict.fromkeys(("cosine", "relative_l2", "row", "array", "output"))
    result = {"passed": None, "sequences": 0, "min_cosine": 0.9995, "max_relative_l2": 1e-5}
    result |= {"reference": "fair-esm", "worst": worst, "records": [], "seconds": 0.0}
    result |= {"arrays": [], "masked_places": 0, "not_compared": []}
    write_record(paths.verification, result | {"made_from": _made_from(paths)})


def record(row=0, record_id="a", relative_l2=2e-7, cosine=1.0, passed=True, output="mean", **more):
    array = Array.named(output)
    return {
        "row": row,
        "id": record_id,
        "length": 40,
        "embedded_length": 40,
        "array": array.name,
        "output": array.output.name,
        "layer": array.layer,
        "against": "reference",
        "relative_l2": relative_l2,
        "absolute": relative_l2,
        "cosine": cosine,
        "passed": passed,
        **more,
    }


def measured(root, *, fasta=FASTA, shards=1, records=None, passed=True, **run) -> Paths:
    """Write all that the report of such a run is made from; `records` were verified."""
    paths = write_run(root, fasta, shards, **run)
    off(paths)
    if records:
        verification = read_record(paths.verification)
        worst = {"cosine": 1.0, "relative_l2": 2e-7, "row": 0, "array": "mean", "output": "mean"}
        found = {"passed": passed, "sequences": len(records), "records": records, "worst": worst}
        found["drawn"] = asdict(DRAWN)
        found["arrays"] = [*map(_summary, {record["array"]: record for record in records}.values())]
        write_record(paths.verification, verification | found)
    write_metrics(paths, shards)
    return paths


def _summary(one: dict) -> dict:
    """What the comparisons of an array come to, if `one` is the worst of them."""
    keys = ("array", "output", "layer", "relative_l2", "absolute", "row", "cosine", "passed")
    keys += ("against",)
    return {key: one[key] for key in keys} | {"compared": 1}


def report(root, annotations: str | None = None, **run) -> str:
    """Write the report of a `measured` run, coloured by a table's text, and return it."""
    paths = measured(root, **run)
    options = PLAIN
    if annotations is not None:
        table = root / "table.tsv"
        table.write_text(annotations, encoding="utf-8")
        options = replace(PLAIN, annotations=str(table))
    assert write_report(paths, options) == paths.report
    return paths.report.read_text(encoding="utf-8")


def _made_from(paths: Paths) -> list[str]:
    return [read_record(paths.merging)[RECORD_DIGEST]] if paths.merging.exists() else []


def _write_job(paths: Paths, shard: int, asked: EmbedOptions, changes: dict) -> ShardRun:
    dataset = SequenceDataset(paths.shard_fasta(shard), asked.length)
    packs = plan_packs(dataset.tokens, BUDGET)
    statistics = []
    for pack in range(len(packs)):
        tokens, items = int(packs.tokens[pack]), packs[pack]
        counts = (pack, len(items), int(dataset.embedded_lengths[items].sum()), tokens)
        times = (0.1, 0.4, PACK_SECONDS * (pack + 1))
        fill = (BUDGET, tokens / max(tokens, BUDGET))
        statistics.append(PackStatistics(*counts, *fill, *times, 1, 0, 0))
    write_packs(paths.shard_packs(shard), statistics)
    seconds = PACK_SECONDS * len(packs)
    facts = {
        "shard": shard,
        "records": len(dataset),
        "residues": int(dataset.embedded_lengths.sum()),
        "tokens": int(dataset.tokens.sum()),
        "options": asked,
        "token_budget": BUDGET,
        "packs": len(packs),
        "fasta_sha256": written_digest(read_summary(paths), paths, paths.shard_fasta(shard)),
        "packs_sha256": file_digest(paths.shard_packs(shard)),
        "fill": packs.fill,
        "flops": 1e9 * len(packs),
        "seconds": Seconds(1.0, seconds, 0.4 * len(packs), 0.1 * len(packs), 1.0 + seconds),
        "started": f"2025-01-01T00:00:{10 * shard:02d}+00:00",
        "finished": f"2025-01-01T00:00:{10 * shard + 1 + seconds:04.1f}+00:00",
    }
    return shard_run(**facts | changes)


def _write_arrays(paths: Paths, run: ShardRun, vectors) -> None:
    digests = {}
    residues = SequenceDataset(paths.shard_fasta(run.shard), run.options.length).embedded_lengths
    for array in map(Array.named, run.plan.arrays):
        shape = (int(array.lines(residues).sum()), *array.line(run.checkpoint.geometry.width))
        path = paths.shard_array(run.shard, array.name)
        np.save(path, vectors(shape, array.dtype(run.plan.output_dtype)))
        digests[array.name] = file_digest(path)
    replace(run, arrays_sha256=digests).write(paths.shard_run(run.shard))


def _random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(shape[0]).standard_normal(shape).astype(dtype)
