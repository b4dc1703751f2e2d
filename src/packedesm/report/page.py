"""The report of one sample: one HTML file that needs nothing beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from packedesm.files import (
    RECORD_DIGEST,
    file_digest,
    read_record,
    reading,
    write_record,
    write_text,
)
from packedesm.options import NONE, ReportOptions
from packedesm.outputs import OUTPUTS, Array
from packedesm.paths import Paths
from packedesm.reference.vectors import Drawn
from packedesm.report import plots, words
from packedesm.report.annotations import Annotations, read_annotations
from packedesm.report.flagged import first_flagged
from packedesm.report.jobs import distinct, phases, run_facts
from packedesm.report.maps import draw_maps
from packedesm.report.methods import methods
from packedesm.report.multiqc import write_multiqc
from packedesm.report.vectors import Vectors, apart, foremost, is_pooled, read_vectors
from packedesm.sequences.flags import FLAGS, Flag
from packedesm.sequences.index import FLOAT32, length_counts

logger = logging.getLogger(__name__)

PLAIN = ReportOptions("pca", NONE, NONE, 1)
_UNEXPLAINED = Flag("See the table of flags in the documentation.")


class Before(NamedTuple):
    """What the steps before the report say, and the manifest of finished results too."""

    merged: Mapping[str, str]  # digests of the merged files, by name
    seconds: Mapping[str, float]  # that "sharding" and "merging" took


def write_report(
    paths: Paths,
    options: ReportOptions = PLAIN,
    *,
    table: str | None = None,
    workflow: bool = False,
) -> Path:
    """Write the report of a run whose steps before it are done, and return it.

    Parameters and errors as those of `draw_report`, whose record is written too.
    """
    steps = {"sharding": paths.sharding_seconds, "merging": paths.merging_seconds}
    seconds = {step: read_record(path)["seconds"] for step, path in steps.items()}
    before = Before(read_record(paths.merging)["sha256"], seconds)
    record = draw_report(paths, options, before, table=table, workflow=workflow)
    write_record(paths.reporting, record)
    return paths.report


def draw_report(
    paths: Paths,
    options: ReportOptions,
    before: Before,
    *,
    table: str | None = None,
    workflow: bool = False,
) -> dict[str, Any]:
    """Write report.html from metrics.json, verification.json and the merged results.

    And beside it what MultiQC shows of the sample.

    The page holds its style and its figures, loads nothing, and runs no script. Text that comes
    from the input is escaped.

    Parameters
    ----------
    options
        What is shown of the vectors.
    before
        What else is to be known.
    table
        Where the annotations lie, if that is not the path that `options` name.
    workflow
        Whether Snakemake runs the steps: who describes them then cites it.

    Returns
    -------
    dict
        The record of what was written, and from what.

    Raises
    ------
    Damaged
        If a file is not as its step wrote it.
    UserError
        If the annotations cannot be read, or the library of a map is not installed.
    """
    metrics, verification = read_record(paths.metrics), read_record(paths.verification)
    array = foremost(metrics["arrays"])
    vectors = read_vectors(paths, array.name, before.merged) if is_pooled(array) else None
    shown = options if table is None else replace(options, annotations=table)
    annotations = read_annotations(shown, vectors.ids if vectors else ())
    flags = metrics["flags"] | {FLOAT32: metrics["recoveries"]["float32_records"]}
    with reading(paths.index, sha256=before.merged[paths.index.name]):
        counts, flagged = length_counts(paths.index), first_flagged(paths.index, flags)
        colourless = annotations.matches_none(paths.index) if annotations else None
    if colourless:
        logger.warning("%s", colourless)
    picture, drawn = _maps(vectors, None if colourless else annotations, shown)
    content = {
        "sample": paths.root.resolve().name,
        "metrics": metrics,
        "verification": verification,
        "figures": _figures(metrics, verification, counts) | drawn,
        "picture": picture,
        "colourless": colourless,
        **_made(metrics),
        "error": _error(verification, vectors) if vectors else None,
        "flags": _flags(flags, flagged),
        "output": array.name,
        "offsets": _offsets(paths, array),
        "files": _files(paths, metrics),
        "phases": phases(before.seconds, metrics, verification),
        "run_facts": run_facts(metrics),
        "versions": distinct(metrics, lambda run: run["versions"]),
        "methods": methods(metrics, verification, workflow=workflow),
        "drawn": Drawn.of(told).in_words() if (told := verification.get("drawn")) else None,
    }
    write_text(paths.report, _environment().get_template("report.html.j2").render(content))
    made_from = [record[RECORD_DIGEST] for record in (metrics, verification)]
    digests = {paths.report.name: file_digest(paths.report)}
    digests |= write_multiqc(paths, metrics, verification)
    return {
        "sha256": digests,
        "made_from": made_from,
        "options": options.as_config(),
        "table": annotations.sha256 if annotations else None,
        "seconds": dict(before.seconds),
    }


def _maps(
    vectors: Vectors | None, annotations: Annotations | None, options: ReportOptions
) -> tuple[dict[str, Any], dict[str, Markup]]:
    """Return what the page says of the maps of the vectors, and the figures."""
    if vectors is None:
        return {"kind": "none", "lost": 0}, {}
    said, figures = draw_maps(vectors, annotations, options)
    if missing := said.get("without"):
        logger.info(
            "%s: no value of %s for %d of the %d proteins that the map shows",
            *(options.annotations, said["column"], missing, said["shown"]),
        )
    return said, figures


def _made(metrics: dict) -> dict[str, Any]:
    """Return what the page calls the results, and in words what they are if not vectors."""
    outputs = dict.fromkeys(Array.named(name).output for name in metrics["arrays"])
    layered = any(output.layered for output in outputs)
    made = "; ".join(words.OUTPUTS[output.name] for output in outputs)
    return {"what": "vectors" if layered else "results", "made": "" if layered else made}


def _figures(metrics: dict, verification: dict, counts: np.ndarray) -> dict[str, Markup]:
    packing = metrics["packing"]["all"]
    limit = None if metrics["long_sequences"] == "full" else metrics["max_length"]
    figures = {
        "lengths": plots.lengths(counts, limit),
        "padding": plots.padding(
            packing["tokens"], packing["padded_tokens_sorted"], packing["padded_tokens_arrival"]
        ),
        "throughput": plots.throughput(**metrics["throughput"]["course"]),
    }
    if packing["tokens"] == 0:  # only masked copies went through the model
        del figures["padding"], figures["throughput"]
    if records := [r for r in verification["records"] if r["against"] == "reference"]:
        figures["distances"] = plots.distances(records, verification["max_relative_l2"])
        if vectors := [record for record in records if OUTPUTS[record["output"]].layered]:
            figures["angles"] = plots.angles(vectors, verification["min_cosine"])
    return {name: Markup(svg) for name, svg in figures.items()}


def _error(verification: dict, vectors: Vectors) -> dict[str, Any] | None:
    """Return the largest error of an output beside the distances between proteins, if both are."""
    distances = [
        record["relative_l2"]
        for record in verification["records"]
        if record["array"] == vectors.output
    ]
    found = apart(vectors)
    if found is None or not distances or None in distances:
        return None
    return {
        "output": vectors.output,
        "largest": (largest := max(distances)),
        "apart": found,
        "times": found.median / largest if largest else None,
        "meaning": words.meaning_of_error(largest, found),
    }


def _flags(counts: dict[str, int], flagged: dict[str, list]) -> list[dict[str, Any]]:
    """Return what is said of each flag that a record carries; those that nobody explains first."""
    order = [*FLAGS]
    flags = [
        {
            "name": name,
            "records": counts[name],
            "meaning": FLAGS.get(name, _UNEXPLAINED).meaning,
            "first": first,
        }
        for name, first in flagged.items()
    ]
    return sorted(
        flags, key=lambda flag: order.index(flag["name"]) if flag["name"] in order else -1
    )


def _offsets(paths: Paths, array: Array) -> str | None:
    """Return the file of where each protein's rows begin in an array; None: each has one row."""
    found = paths.offsets(array.per)
    return None if found is None else found.name


def _files(paths: Paths, metrics: dict) -> list[dict[str, str]]:
    files = []
    for name in metrics["arrays"]:
        array = np.load(paths.array(name), mmap_mode="r")
        shape = " \N{MULTIPLICATION SIGN} ".join(f"{size:,}" for size in array.shape)
        holds = f"{shape} {array.dtype}: {words.array(name)}"
        files.append({"name": paths.array(name).name, "holds": holds})
    for path in paths.arrays(metrics["arrays"])[len(files) :]:
        count = metrics["records"] + 1
        holds = f"{count:,} int64: protein k has rows offsets[k] to offsets[k + 1] - 1"
        if path == paths.residue_letters:
            holds = "the letter of each residue, the proteins back to back"
        files.append({"name": path.name, "holds": holds})
    return files + [{"name": name, "holds": holds} for name, holds in words.FILES.items()]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("packedesm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    return environment
