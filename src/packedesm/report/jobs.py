"""What the report says of the jobs of a run: what they ran on, and what took how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from packedesm.report import words

_STEADY = 1.15


def phases(before: Mapping[str, float], metrics: dict, verification: dict) -> list[dict[str, Any]]:
    """Return the steps in their order, with the seconds that each took, over all jobs."""
    jobs = [run["seconds"] for run in metrics["runs"]]
    setup, embedding, total, starting, checking, peak = (
        sum(job.get(name, 0.0) for job in jobs)  # earlier versions told of fewer
        for name in ("setup", "embedding", "total", "starting", "checking", "peak")
    )
    steps = [
        ("Starting Python and its libraries, for embedding", starting),
        ("Reading the FASTA and cutting shards", before["sharding"]),
        ("Reference for the verification", verification.get("reference_seconds")),
        ("Starting: weights, device, what is chosen", max(0.0, setup - checking - peak)),
        ("First check against the reference", checking),
        ("Measuring the speed limit", peak),
        ("Embedding", embedding),
        ("Writing what was embedded", max(0.0, total - setup - embedding)),
        ("Merging the shards", before["merging"]),
        ("Verification", verification["seconds"]),
    ]
    known = [(name, seconds) for name, seconds in steps if seconds is not None]
    whole = sum(seconds for _name, seconds in known)
    return [
        {"name": name, "seconds": seconds, "share": seconds / whole if whole else 0.0}
        for name, seconds in known
    ]


def run_facts(metrics: dict) -> dict[str, Any]:
    """Return what the jobs ran on and with; more than one value where the jobs differed."""
    return {
        "devices": distinct(metrics, _device),
        "choices": {
            name: distinct(metrics, partial(_chosen, choice))
            for choice, name in words.CHOICES.items()
        },
        "first_check": _first_check(metrics),
        "precision": distinct(metrics, _precision),
        "peak_reasons": distinct(metrics, lambda run: run["matmul_peak_reason"]),
        "peak_changes": _peak_changes(metrics),
        "gpu_reasons": distinct(metrics, lambda run: run["gpu"]["reason"]),
    }


def _peak_changes(metrics: dict) -> list[tuple[float, float]]:
    """Return the slowest and the fastest peak, TFLOP/s, of each job whose machine's speed changed.

    What is measured on a machine at rest differs by less.
    """
    ranges = [run["matmul_peak_range"] for run in metrics["runs"]]
    return [
        (lowest / 1e12, highest / 1e12)
        for lowest, highest in filter(None, ranges)
        if highest > _STEADY * lowest
    ]


def _first_check(metrics: dict) -> dict[str, Any] | None:
    """Return the check that was furthest off among those of all jobs; None without any."""
    checks = [run["first_check"] for run in metrics["runs"]]
    compared = [check for check in checks if check and check["compared"]]
    return max(compared, key=lambda check: check["relative_l2"], default=None)


def _device(run: dict) -> str:
    device = run["device"]
    if device["kind"] != "cpu":
        return device["name"]
    can = f", {device['instructions']}" if device.get("instructions") else ""
    return f"{device['name']}{can}, {device['threads']} threads"


def _precision(run: dict) -> str | None:
    """Return how a GPU's products were computed, below the number format of the computation."""
    if run["device"]["kind"] != "cuda":
        return None
    used = [name for name, is_used in run["precision"].items() if is_used]
    return ", ".join(used) or "no TF32, sums of products in float32"


def _chosen(what: str, run: dict) -> dict[str, str]:
    value = run["plan"][what]
    shown = f"{value:,}" if isinstance(value, int) else value
    return {"value": shown, "reason": run["plan"]["reasons"].get(what, "")}


def distinct(metrics: dict, value: Callable[[dict], Any]) -> list[Any]:
    """Return what jobs have that is not None, each once."""
    found = []
    for run in metrics["runs"]:
        if (item := value(run)) is not None and item not in found:
            found.append(item)
    return found
