"""What a run cost: packing, padding avoided, throughput, hardware, and what the input held."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.files import file_digest, read_record, write_record
from packedesm.paths import Paths
from packedesm.reference.vectors import FIRST
from packedesm.report.course import course_of, packs_of, timelines
from packedesm.report.packing import packing_of, packing_of_all, ratio
from packedesm.report.tables import write_tables
from packedesm.sequences.arrow import read_columns, to_numpy
from packedesm.sequences.index import embedded_as, length_counts
from packedesm.sequences.summary import read_summary, reading_sharded

RECOVERIES = (
    "restarts",
    "recomputed_packs",
    "discarded_commits",
    "retried_packs",
    "replanned_packs",
)


def write_metrics(paths: Paths, shards: int) -> dict[str, Any]:
    """Summarise the runs of all shards in metrics.json, packing.tsv and throughput.tsv.

    Parameters
    ----------
    paths
        Paths of one sample whose shards have all been embedded, and of whose reference the first
        part was computed.
    shards
        The number of shards.

    Returns
    -------
    dict
        The content of metrics.json. Shares and fills are fractions of one, times are seconds.

    Raises
    ------
    RuntimeError
        If the packs of a shard do not hold exactly the tokens of its records, or are fuller
        than full: the run is then not to be trusted.
    """
    sharding = read_summary(paths)
    runs = [ShardRun.read(paths.shard_run(shard)) for shard in range(shards)]
    packs = [packs_of(paths, run) for run in runs]
    packing = [
        packing_of(paths, run, held, sharding) for run, held in zip(runs, packs, strict=True)
    ]
    throughput = [_throughput(run) for run in runs]
    with reading_sharded(paths, paths.shard_index, summary=sharding):
        counts, float32_records = length_counts(paths.shard_index), _float32_records(paths, runs)
    metrics = {
        **_input_summary(sharding, counts),
        "model": {**runs[0].checkpoint.facts(), "path": runs[0].checkpoint.path},
        "arrays": list(runs[0].plan.arrays),
        "packing": {"all": packing_of_all(packing), "shards": packing},
        "throughput": {
            "all": _throughput_of_all(throughput, runs),
            "shards": throughput,
            "spread": _spread(throughput),
            "elapsed": _elapsed(runs),
            "course": course_of(timelines(runs, packs)),
        },
        "recoveries": {
            **{name: sum(getattr(run, name) for run in runs) for name in RECOVERIES},
            "float32_records": float32_records,
        },
        "runs": [_run_summary(run) for run in runs],
        # How many records are verified, and why so many; None where none is.
        "drawn": read_record(paths.reference(FIRST)).get("drawn"),
    }
    write_tables(paths, metrics)
    tables = (paths.packing, paths.throughput)
    metrics["sha256"] = {path.name: file_digest(path) for path in tables}
    metrics["made_from"] = [run.record_sha256 for run in runs]
    write_record(paths.metrics, metrics)
    return metrics


def _throughput(run: ShardRun) -> dict[str, Any]:
    seconds = run.seconds
    row = {
        "shard": run.shard,
        "device": run.device["name"],
        "records": run.records,
        "residues": run.residues,
        "tokens": run.tokens,
        "masked_passes": run.masked_passes,
        "masked_tokens": run.masked_tokens,
        "seconds": seconds.embedding,
        "masked_seconds": seconds.masked,
        "setup_seconds": seconds.setup,
        "forward_seconds": seconds.forward,
        "wait_seconds": seconds.waiting,
        "flops": run.flops,
        # What the device could have computed meanwhile, at the matmul rate measured in the job.
        "peak_flops": _product(run.matmul_peak_flops, seconds.embedding),
        "gpu_utilisation_percent": _mean(run.gpu["samples"], "utilisation_percent"),
        "energy_j": run.gpu["energy_j"],
        "restarts": run.restarts,
    }
    row["busy"] = (ratio(row["flops"], row["peak_flops"]) or 0.0) > 1
    return _with_rates(row)


def _throughput_of_all(rows: list[dict], runs: list[ShardRun]) -> dict[str, Any]:
    summed = (
        "records",
        "residues",
        "tokens",
        "masked_passes",
        "masked_tokens",
        "seconds",
        "masked_seconds",
        "setup_seconds",
        "forward_seconds",
        "wait_seconds",
        "flops",
        "peak_flops",
        "energy_j",
        "restarts",
    )
    total = {name: _sum(row[name] for row in rows) for name in summed}
    total["busy"] = any(row["busy"] for row in rows)
    devices = sorted({row["device"] for row in rows})
    samples = [sample for run in runs for sample in run.gpu["samples"]]
    return _with_rates(
        {
            "shard": "all",
            "device": ", ".join(devices),
            "gpu_utilisation_percent": _mean(samples, "utilisation_percent"),
            **total,
        }
    )


def _with_rates(row: dict[str, Any]) -> dict[str, Any]:
    """Add rates and shares to sums; over several shards they are per job, not per cluster.

    Records, residues and tokens are set against the time without masked passes, and those against
    their own; operations and waiting against all of it. A job that was faster than its peak shows
    that the machine was busy with other work while that was measured: of `busy` rows there is no
    share.
    """
    seconds, masked = row["seconds"], row["masked_seconds"]
    own = seconds - masked if row["tokens"] else 0.0
    return {
        **row,
        "sequences_per_second": ratio(row["records"], own),
        "residues_per_second": ratio(row["residues"], own),
        "tokens_per_second": ratio(row["tokens"], own),
        "masked_passes_per_second": ratio(row["masked_passes"], masked),
        "masked_tokens_per_second": ratio(row["masked_tokens"], masked),
        "tflops": ratio(row["flops"] / 1e12, seconds),
        "matmul_peak_tflops": ratio(_product(row["peak_flops"], 1e-12), seconds),
        "mfu": None if row["busy"] else ratio(row["flops"], row["peak_flops"]),
        "forward_share": ratio(row["forward_seconds"], seconds),
        "wait_share": ratio(row["wait_seconds"], seconds),
    }


def _spread(rows: list[dict]) -> dict[str, float | None]:
    """Compare shards that had work: the slowest with the mean, the lowest rate with the highest."""
    busy = [row for row in rows if row["tokens"] + row["masked_tokens"] and row["seconds"]]
    if not busy:
        return {"seconds_max_over_mean": None, "tokens_per_second_min_over_max": None}
    seconds = [row["seconds"] for row in busy]
    rates = [(row["tokens"] + row["masked_tokens"]) / row["seconds"] for row in busy]
    return {
        "seconds_max_over_mean": max(seconds) / float(np.mean(seconds)),
        "tokens_per_second_min_over_max": min(rates) / max(rates),
    }


def _elapsed(runs: list[ShardRun]) -> dict[str, Any]:
    """Return the span from the first job's start to the last job's end, queueing included."""
    starts = [datetime.fromisoformat(run.started) for run in runs]
    ends = [datetime.fromisoformat(run.finished) for run in runs]
    # The time of day can be set back meanwhile; what one job took was measured on another clock.
    longest = max(run.seconds.total for run in runs)
    seconds = max((max(ends) - min(starts)).total_seconds(), longest)
    return {
        "started": min(starts).isoformat(timespec="seconds"),
        "seconds": seconds,
        "sequences_per_second": ratio(sum(run.records for run in runs), seconds),
        "residues_per_second": ratio(sum(run.residues for run in runs), seconds),
    }


def _run_summary(run: ShardRun) -> dict[str, Any]:
    samples = run.gpu["samples"]
    return {
        **{name: getattr(run, name) for name in ("shard", "host", "started", "device")},
        "plan": run.plan.as_json(),
        "first_check": run.first_check,
        "precision": run.precision,
        "matmul_peak_range": None if run.matmul_peak_range is None else [*run.matmul_peak_range],
        "matmul_peak_reason": run.matmul_peak_reason,
        **{name: getattr(run, name) for name in RECOVERIES},
        "seconds": asdict(run.seconds),
        "versions": run.versions,
        "gpu": {
            "available": run.gpu["available"],
            "reason": run.gpu["reason"],
            "samples": len(samples),
            "utilisation_percent": _mean(samples, "utilisation_percent"),
            "power_w": _mean(samples, "power_w"),
            "sm_clock_mhz": _mean(samples, "sm_clock_mhz"),
            "peak_memory_bytes": max(_known(samples, "memory_bytes"), default=None),
            "energy_j": run.gpu["energy_j"],
        },
    }


def _float32_records(paths: Paths, runs: list[ShardRun]) -> int:
    """Count the records, duplicates included, whose vector is marked as computed in float32."""
    rows = [row for run in runs for row in run.float32_rows]
    if not rows:
        return 0
    index = read_columns(paths.shard_index, ["row", "duplicate_of"])
    return int(np.isin(to_numpy(embedded_as(index)), rows).sum())


def _input_summary(sharding: dict, counts: np.ndarray) -> dict[str, Any]:
    kept = (
        "records",
        "unique",
        "skipped_empty",
        "residues",
        "embedded_residues",
        "unique_residues",
        "flags",
        "warnings",
        "inputs",
        "max_length",
        "long_sequences",
        "window_overlap",
    )
    return {
        **{name: sharding[name] for name in kept},
        "lengths": _length_summary(counts),
        "duplicates": {
            "records": sharding["records"] - sharding["unique"],
            "residues": sharding["embedded_residues"] - sharding["unique_residues"],
        },
    }


def _length_summary(counts: np.ndarray) -> dict[str, Any]:
    present = np.flatnonzero(counts)
    records = int(counts.sum())
    below = np.cumsum(counts)
    middle = [int(np.searchsorted(below, k + 1)) for k in ((records - 1) // 2, records // 2)]
    return {
        "min": int(present[0]),
        "median": sum(middle) / 2,
        "mean": float(np.dot(np.arange(len(counts)), counts) / records),
        "max": int(present[-1]),
    }


def _mean(samples: list[dict], name: str) -> float | None:
    known = _known(samples, name)
    return float(np.mean(known)) if known else None


def _known(samples: list[dict], name: str) -> list[float]:
    """Return the readings of one kind that NVML did not refuse."""
    return [sample[name] for sample in samples if sample[name] is not None]


def _product(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left * right


def _sum(values: Iterable[float | None]) -> float | None:
    """Add up, or None if any is unknown: a sum of some would pass for the whole."""
    values = list(values)
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
