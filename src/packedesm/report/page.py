"""The report of one sample: one HTML file that needs nothing beside it."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from packedesm.embedding.pack import read_packs
from packedesm.embedding.record import ShardRun
from packedesm.errors import printable
from packedesm.files import (
    RECORD_DIGEST,
    file_digest,
    read_record,
    reading,
    write_record,
    write_text,
)
from packedesm.paths import Paths
from packedesm.report import plots
from packedesm.sequences.flags import FLAGS
from packedesm.sequences.index import length_counts
from packedesm.sequences.summary import reading_sharded

OUTPUTS = {
    "mean": "the mean over the residues of each protein",
    "cls": "the vector of the <cls> token that starts each protein",
    "max": "the largest value over the residues of each protein",
    "residue": "one vector per residue, the proteins back to back",
}
FILES = {
    "index.parquet": "one line per protein, in the same order: id, description, length, flags",
    "skipped.tsv": "records without residues, which have no line in the index",
    "manifest.json": "model, checkpoint digest, shapes, versions; written last, so a folder that"
    " has it is complete",
    "verification.json": "each verified protein and how far it was from the reference",
    "metrics.json": "every number of this report",
    "packing.tsv": "fill of the packs and the padding avoided, shard by shard",
    "throughput.tsv": "speed and hardware use, shard by shard",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_report(paths: Paths) -> Path:
    """Write report.html from metrics.json, verification.json, the index and the packs.

    The page holds its style and its figures, loads nothing, and runs no script. Text that comes
    from the input is escaped.

    Returns
    -------
    Path
        The report.
    """
    metrics, verification = read_record(paths.metrics), read_record(paths.verification)
    content = {
        "sample": paths.root.resolve().name,
        "metrics": metrics,
        "verification": verification,
        "figures": _figures(paths, metrics, verification),
        "flags": _flags(metrics["flags"]),
        "files": _files(metrics),
        "run_facts": _run_facts(metrics),
        "versions": _distinct(metrics, lambda run: run["versions"]),
    }
    write_text(paths.report, _environment().get_template("report.html.j2").render(content))
    made_from = [record[RECORD_DIGEST] for record in (metrics, verification)]
    digests = {paths.report.name: file_digest(paths.report)}
    write_record(paths.reporting, {"sha256": digests, "made_from": made_from})
    return paths.report


def _figures(paths: Paths, metrics: dict, verification: dict) -> dict[str, Markup]:
    packs = [_packs(paths, run["shard"]) for run in metrics["runs"]]
    with reading_sharded(paths, paths.shard_index):
        counts = length_counts(paths.shard_index)
    packing = metrics["packing"]["all"]
    limit = None if metrics["long_sequences"] == "full" else metrics["max_length"]
    figures = {
        "lengths": plots.lengths(counts, limit),
        "padding": plots.padding(
            packing["tokens"], packing["padded_tokens_sorted"], packing["padded_tokens_arrival"]
        ),
        "fill": plots.fill(np.concatenate([pack["fill"] for pack in packs])),
        "throughput": plots.throughput(_timelines(metrics["runs"], packs)),
    }
    if verification["records"]:
        figures["accuracy"] = plots.accuracy(
            verification["records"], verification["min_cosine"], verification["max_relative_l2"]
        )
    return {name: Markup(svg) for name, svg in figures.items()}


def _packs(paths: Paths, shard: int) -> dict[str, np.ndarray]:
    path, run = paths.shard_packs(shard), ShardRun.read(paths.shard_run(shard))
    with reading(path, sha256=run.packs_sha256):
        return read_packs(path)


def _timelines(runs: list[dict], packs: list[dict]) -> list[tuple[float, np.ndarray, np.ndarray]]:
    starts = [datetime.fromisoformat(run["started"]) for run in runs]
    return [
        (
            (start - min(starts)).total_seconds() + run["seconds"]["setup"],
            pack["finished_seconds"],
            pack["residues"],
        )
        for start, run, pack in zip(starts, runs, packs, strict=True)
    ]


def _flags(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"name": name, "records": count, "meaning": FLAGS[name].meaning}
        for name, count in counts.items()
        if count
    ]


def _files(metrics: dict) -> list[dict[str, str]]:
    records, width = metrics["records"], metrics["model"]["width"]
    number = ", ".join(_distinct(metrics, lambda run: run["plan"]["output_dtype"]))
    files = []
    for output in metrics["outputs"]:
        rows = metrics["embedded_residues"] if output == "residue" else records
        shape = f"{rows:,} \N{MULTIPLICATION SIGN} {width:,} {number}"
        files.append({"name": f"{output}.npy", "holds": f"{shape}: {OUTPUTS[output]}"})
    if "residue" in metrics["outputs"]:
        holds = f"{records + 1:,} int64: protein k has rows offsets[k] to offsets[k + 1] - 1"
        files.append({"name": "residue_offsets.npy", "holds": holds})
    return files + [{"name": name, "holds": holds} for name, holds in FILES.items()]


def _run_facts(metrics: dict) -> dict[str, list[str]]:
    """Return what the jobs ran on and with; more than one value where the jobs differed."""
    return {
        "devices": _distinct(metrics, _device),
        "dtypes": _distinct(metrics, lambda run: run["plan"]["dtype"]),
        "output_dtypes": _distinct(metrics, lambda run: run["plan"]["output_dtype"]),
        "attention": _distinct(metrics, partial(_chosen, "attention")),
        "kernels": _distinct(metrics, partial(_chosen, "kernels")),
        "precision": _distinct(metrics, _precision),
        "peak_reasons": _distinct(metrics, lambda run: run["matmul_peak_reason"]),
        "gpu_reasons": _distinct(metrics, lambda run: run["gpu"]["reason"]),
    }


def _device(run: dict) -> str:
    device = run["device"]
    threads = f", {device['threads']} threads" if device["kind"] == "cpu" else ""
    return device["name"] + threads


def _precision(run: dict) -> str | None:
    """Return how a GPU's products were computed, below the number format of the computation."""
    if run["device"]["kind"] != "cuda":
        return None
    used = [name for name, is_used in run["precision"].items() if is_used]
    return ", ".join(used) or "no TF32, sums of products in float32"


def _chosen(what: str, run: dict) -> str:
    return f"{run['plan'][what]} ({run['plan']['reasons'][what]})"


def _distinct(metrics: dict, value: Callable[[dict], Any]) -> list[Any]:
    found = []
    for run in metrics["runs"]:
        if (item := value(run)) is not None and item not in found:
            found.append(item)
    return found


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("packedesm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "printable": printable,
        "count": lambda value: f"{value:,}",
        "number": _number,
        "percent": _percent,
        "duration": _duration,
        "bytes": _bytes,
        "scientific": _scientific,
        "cosine": lambda value: "not a number" if value is None else f"{value:.8f}",
    }
    return environment


def _number(value: float | None, unit: str = "") -> str:
    """Format with about three digits, and no power of ten; what is unknown has no unit."""
    if value is None:
        return "unknown"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def _percent(fraction: float | None) -> str:
    if fraction is None:
        return "unknown"
    text = f"{fraction:.1%}"
    # Only what is complete may look complete.
    return "> 99.9%" if text == "100.0%" and fraction < 1 else text


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "unknown"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value} bytes"


def _scientific(value: float | None) -> str:
    if value is None:
        return "not a number"
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".replace(".0e", "e").split("e")
    power = str(int(exponent)).translate(SUPERSCRIPTS)
    return f"{digits} \N{MULTIPLICATION SIGN} 10{power}"
