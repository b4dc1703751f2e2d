"""The last file of a run: its presence says that all others are there and were checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault, UserError
from packedesm.files import RECORD_DIGEST, file_digest, read_record, reading, write_record
from packedesm.outputs import Array
from packedesm.paths import Paths
from packedesm.results.index_file import index_columns
from packedesm.results.request import Request
from packedesm.sequences.arrow import to_numpy
from packedesm.versions import versions

FORMAT = 2  # of manifests: those of format 1 had no digest of themselves


def write_manifest(
    paths: Paths, config: Mapping[str, Any], request: Request | None = None
) -> dict[str, Any]:
    """Check a sample's results and write ``manifest.json``, and return its content.

    Parameters
    ----------
    paths
        The sample, merged, verified and reported.
    config
        The resolved configuration, kept in the manifest with its digest.
    request
        What the command was asked for, by which it will know its results again.

    Raises
    ------
    UserError
        If the verification missed a threshold of the configuration.
    Fault
        If a file is not as its step wrote it, or was made from others than are there now.
    RuntimeError
        If an array does not have the shape or number format that the index and the jobs say.
    """
    verification = read_record(paths.verification)
    if verification["passed"] is False:
        raise UserError(_explain_failure(paths, verification))
    reporting = read_record(paths.reporting)
    digests = _chained_digests(paths, verification, reporting)
    run = ShardRun.read(paths.shard_run(0))
    _expect_asked(paths, run, config)
    with ExitStack() as stack:
        for name, digest in digests.items():
            stack.enter_context(reading(paths.root / name, sha256=digest))
        index = index_columns(paths.index, ["embedded_length"])
        residues = to_numpy(index["embedded_length"]).astype(np.int64)
        arrays = _check_arrays(paths, run, residues)
    manifest = {
        "format": FORMAT,
        "records": index.num_rows,
        "residues": int(residues.sum()),
        "model": run.checkpoint.facts(),
        "dtype": run.plan.dtype,
        "float_products": list(run.plan.float_products),
        "attention": run.plan.attention,
        "arrays": arrays,
        "sha256": digests,
        "verified": verification["sequences"],
        **configured(config),
        "report": reported(reporting),
        "versions": versions(),
        "request": request.as_json() if request else None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_record(paths.manifest, manifest)
    return manifest


def configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a resolved configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"config": json.loads(text), "config_sha256": digest}


def reported(reporting: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a report.

    That is what it was asked for, the digest of its table, and what cannot be known from the
    results when it is drawn again.
    """
    return {key: reporting[key] for key in ("options", "table", "seconds")}


def _expect_asked(paths: Paths, run: ShardRun, config: Mapping[str, Any]) -> None:
    """Raise Fault if what was embedded is not what the configuration asks for."""
    for key, was in run.options.as_config().items():
        if config.get(key, was) != was:
            raise Fault(
                f"{paths.shard_run(run.shard)}: was made with {key} {was}, and {config[key]} is "
                "asked for; delete it and run again"
            )


def _check_arrays(paths: Paths, run: ShardRun, residues: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return what each array is, or raise if shape or number format are not what they must be."""
    geometry = run.checkpoint.geometry
    arrays = {}
    for array in map(Array.named, run.plan.arrays):
        path, output = paths.array(array.name), array.output
        found = np.load(path, mmap_mode="r")
        expected = (int(array.lines(residues).sum()), *array.line(geometry.width))
        dtype = array.dtype(run.plan.output_dtype)
        if found.shape != expected or found.dtype != dtype:
            raise RuntimeError(
                f"{path} is {found.dtype} {found.shape}, expected {dtype} {expected}"
            )
        last = geometry.layers if output.layered else None
        arrays[path.name] = {
            "shape": list(found.shape),
            "dtype": dtype,
            "output": output.name,
            "layer": last if array.layer is None else array.layer,
            "columns": list(output.columns) if output.columns else None,
        }
    return arrays


def _chained_digests(
    paths: Paths, verification: Mapping[str, Any], reporting: Mapping[str, Any]
) -> dict[str, str]:
    """Return the digests that all results were written with, by name.

    Raises
    ------
    Fault
        If a step worked on other files than those that are there now.
    """
    metrics, merging = read_record(paths.metrics), read_record(paths.merging)
    shards = range(len(metrics["runs"]))
    runs = [ShardRun.read(paths.shard_run(shard)).record_sha256 for shard in shards]
    made_from = {
        paths.metrics: (metrics, runs),
        paths.merging: (merging, runs),
        paths.verification: (verification, [merging[RECORD_DIGEST]]),
        paths.reporting: (reporting, [metrics[RECORD_DIGEST], verification[RECORD_DIGEST]]),
    }
    for path, (record, expected) in made_from.items():
        if record["made_from"] != expected:
            raise Fault(f"{path}: was made from other files than are there; delete it, run again")
    records = {path.name: file_digest(path) for path in (paths.metrics, paths.verification)}
    return {**merging["sha256"], **metrics["sha256"], **reporting["sha256"], **records}


def _explain_failure(paths: Paths, verification: Mapping[str, Any]) -> str:
    worst = verification["worst"]
    # A vector with NaN, or of another size, has no distance; what is no vector has no cosine.
    cosine, distance = (
        "none" if worst[key] is None else f"{worst[key]:.6g}" for key in ("cosine", "relative_l2")
    )
    failed = sum(not record["passed"] for record in verification["records"])
    return (
        f"verification failed: {failed} of {len(verification['records'])} comparisons "
        f"miss min_cosine {verification['min_cosine']} or max_relative_l2 "
        f"{verification['max_relative_l2']} (worst: row {worst['row']}, {worst['array']}, cosine "
        f"{cosine}, relative L2 {distance}); no manifest is written; "
        f"see {paths.verification}"
    )
