"""What the parts found as Markdown, made from the JSON alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.contenders import BASE
from benchmarks.table import find, ratio
from packedesm.errors import plural

Result = dict[str, Any]


def as_markdown(state: dict[str, Any]) -> str:
    """Return the conditions, what became of each part, and a table of each that found something."""
    conditions, parts = state["conditions"], state["parts"]
    sections = [f"# {conditions['chip']}, {conditions['date'][:10]}", about(conditions)]
    rows = [[name, state_of(entry), entry.get("seconds", "")] for name, entry in parts.items()]
    sections.append(table(["part", "state", "seconds"], rows))
    for name, entry in parts.items():
        if "result" in entry:
            module = name.partition(" ")[0]
            sections += [f"## {name}", TABLES[module](entry["result"])]
    return "\n\n".join(sections) + "\n"


def state_of(entry: dict[str, Any]) -> str:
    """Return what became of a part, in a few words."""
    return "finished" if entry["finished"] else entry["reason"]


def about(conditions: dict[str, Any]) -> str:
    """Return the conditions in one paragraph."""
    versions = ", ".join(f"{k} {v}" for k, v in conditions["versions"].items() if v)
    gpu = ", ".join(f"{name} {value}" for name, value in (conditions["gpu"] or {}).items())
    changed = ", changed since" if conditions["changed_since"] else ""
    return (
        f"{conditions['cpu']}, {conditions['cores']} cores; Python {conditions['python']}, "
        f"{versions}, CUDA {conditions['cuda']}; {gpu or 'no GPU'}; commit "
        f"{conditions['commit']}{changed}; {conditions['date']}; digest {conditions['key']}."
    )


def of_tests(result: Result) -> str:
    """Return counts, every test that failed or was not run, and reasons for skipping."""
    counts = {kind: len(result[kind]) for kind in ("passed", "failed", "skipped", "not_run")}
    head = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items())
    rows = [["failed", *pair] for pair in result["failed"].items()]
    rows += [["not run", test, "the time was up"] for test in result["not_run"]]
    reasons = Counter(result["skipped"].values())
    rows += [["skipped", plural(count, "test"), reason] for reason, count in reasons.items()]
    return f"{head}.\n\n{table(['', 'test', 'reason'], rows)}" if rows else f"{head}."


def of_kernels(result: Result) -> str:
    """Return each kernel beside its twin, and as a share of the rate of a copy."""
    copy = 2 * result["copy_bytes_per_second"]  # read and written
    rows = []
    for row in result["rows"]:
        cells = [row["kernel"], row["model"], row["dtype"]]
        if "reason" in row:
            rows.append([*cells, row["reason"]])
            continue
        rate = row["bytes_per_second"]
        times = [f"{1e6 * row[what]:.0f}" for what in ("seconds", "twin_seconds")]
        rows.append([*cells, *times, f"{rate / 1e9:,.0f} ({share(rate / copy)})"])
    head = ["kernel", "model", "dtype", "µs", "torch, µs", "GB/s (of a copy)"]
    return f"{result['tokens']:,} tokens.\n\n{table(head, rows)}"


def of_layers(result: Result) -> str:
    """Return of each way the time of a pass, what each step takes of it, and launches a layer."""
    steps: list[str] = []
    rows = []
    for row in result["rows"]:
        cells = [row["dtype"], row["attention"], row["kernels"]]
        if "reason" in row:
            rows.append([*cells, row["reason"]])
            continue
        steps = [*row["steps"]]
        seconds = statistics.median(row["seconds"])
        launches = sum(step["launches"] for step in row["steps"].values()) / result["layers"]
        cells += [f"{1e3 * seconds:.1f} ({spread(row['seconds'], 1e3, 1)})"]
        cells += [f"{result['tokens'] / seconds:,.0f}"]
        cells += [share(row["product_ceiling_seconds"] / seconds)]
        cells += [f"{1e3 * step['seconds']:.1f}" for step in row["steps"].values()]
        rows.append([*cells, f"{launches:.1f}"])
    head = ["dtype", "attention", "kernels", "pass, ms", "tokens/s", "of the product ceiling"]
    head += [f"{step}, ms" for step in steps]
    return f"One pack of {result['tokens']:,} tokens, {result['layers']} layers.\n\n" + table(
        [*head, "launches a layer"], rows
    )


def of_comparison(result: Result) -> str:
    """Return the rows of the comparison, and the limits that were measured in it."""
    base = find(result, BASE.name, BASE.dtype)
    rows: list[Sequence[Any]] = []
    for row in result["rows"]:
        cells = [row["name"], row["dtype"]]
        if not row["seconds"]:
            rows.append([*cells, row["reason"] or ""])
            continue
        times, tokens = ratio(row, base), result["input"]["tokens"]
        rates = [tokens / seconds for seconds in row["seconds"]]
        cells += [f"{row['tokens_per_second']:,.0f} ({spread(rates, 1, 0)})"]
        cells += ["" if times is None else f"{times:.1f} x"]
        cells += [share(row["mfu"])]
        rows.append(
            [*cells, f"{row['peak_bytes'] / 1e9:.1f}", f"{row['relative_l2']['worst']:.0e}"]
        )
    head = ["contender", "dtype", "tokens/s", "fair-esm float32", "MFU", "GB", "relative L2"]
    limits = [
        [name, f"{limit['median'] / 1e12:.3f}" if "median" in limit else limit["reason"]]
        for name, limit in result["limits"].items()
    ]
    size = f"{result['input']['records']} records, {result['input']['tokens']:,} tokens."
    return f"{size}\n\n{table(head, rows)}\n\n{table(['limit', 'TFLOP/s or TB/s'], limits)}"


def of_job(result: Result) -> str:
    """Return each run of the command."""
    rows = [
        [
            *(f"{row['records']:,}", row["dtype"], row["attention"], row["kernels"]),
            *(f"{row['token_budget']:,}", f"{row['seconds']:.1f}", f"{row['setup_seconds']:.1f}"),
            *(f"{row['embedding_seconds']:.1f}", f"{row['forward_seconds']:.1f}"),
            *(f"{row['tokens_per_second']:,.0f}", share(row["mfu"]), f"{row['relative_l2']:.0e}"),
        ]
        for row in result["rows"]
    ]
    head = ["records", "dtype", "attention", "kernels", "tokens in a pack", "command, s"]
    head += ["set-up, s", "embedding, s", "forward, s", "tokens/s", "MFU", "relative L2"]
    return table(head, rows)


TABLES: dict[str, Callable[[Result], str]] = {
    "gpu_tests": of_tests,
    "kernels": of_kernels,
    "layers": of_layers,
    "comparison": of_comparison,
    "job": of_job,
}


def share(value: float | None) -> str:
    """Return a share in per cent, nothing where it is not known."""
    return "" if value is None else f"{value:.0%}"


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Return the least and the greatest of some values."""
    return f"{scale * min(values):,.{digits}f} to {scale * max(values):,.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; short rows are filled up."""
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    texts = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)
