"""The results as tables: one for the terminal, one for the README.

python -m benchmarks.table        # writes the README's table from benchmarks/results/
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import BASE, entries
from packedesm.files import read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
MODELS = {  # in the README's order, by short name
    "esm2_t6_8M_UR50D": "8M",
    "esm2_t12_35M_UR50D": "35M",
    "esm2_t30_150M_UR50D": "150M",
    "esm2_t33_650M_UR50D": "650M",
    "esm2_t36_3B_UR50D": "3B",
}


def ratio(row: dict[str, Any], base: dict[str, Any] | None) -> float | None:
    """Return how many times as fast as `base` a row is: the median over the rounds."""
    if base is None or not row["seconds"] or not base["seconds"]:
        return None
    rounds = zip(base["seconds"], row["seconds"], strict=False)
    return statistics.median(theirs / ours for theirs, ours in rounds)


def find(result: dict[str, Any], name: str, dtype: str) -> dict[str, Any] | None:
    """Return the row of a contender, None if there is none."""
    rows = (r for r in result["rows"] if (r["name"], r["dtype"]) == (name, dtype))
    return next(rows, None)


def line(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Return a row as a line of the terminal's table."""
    name = f"{row['name']:<36}{row['dtype']:<10}"
    if not row["seconds"]:
        return f"{name}{row['reason']}"
    times = ratio(row, find(result, BASE.name, BASE.dtype))
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.0%}"
    spread = f"{row['tokens_per_second_min']:,.0f}-{row['tokens_per_second_max']:,.0f}"
    distance = row["relative_l2"]
    return (
        f"{name}{row['tokens_per_second']:>10,.0f}{spread:>18}{row['residues_per_second']:>12,.0f}"
        f"{'' if times is None else f'{times:.2f} x':>9}{mfu:>6}{row['peak_bytes'] / 1e9:>8.2f}"
        f"{distance['median']:>10.1e}{distance['worst']:>9.1e}{row['budget']:>8}"
        f"{row['warm_up_seconds']:>9.1f}"
        + (f"  then failed: {row['reason']}" if row["reason"] else "")
    )


def for_terminal(result: dict[str, Any]) -> str:
    """Return the limits and all rows of one result."""
    size, conditions = result["input"], result["conditions"]
    lines = [
        f"{result['model']} on {conditions['chip']}, {conditions['threads']} threads, "
        f"{size['records']} records, {size['tokens']:,} tokens, {conditions['date']}",
        *(_limit(name, figures) for name, figures in result["limits"].items()),
        f"{'contender':<36}{'dtype':<10}{'tokens/s':>10}{'min-max':>18}{'residues/s':>12}"
        f"{'x base':>9}{'MFU':>6}{'GB':>8}{'L2':>10}{'worst':>9}{'budget':>8}"
        f"{'warm-up':>9}",
        *(line(result, row) for row in result["rows"]),
    ]
    return "\n".join(lines)


def _limit(name: str, figures: dict[str, Any]) -> str:
    if "median" not in figures:
        return f"  {name:<26}{figures['reason']}"
    unit, scale = ("TFLOP/s", 1e12) if figures["median"] >= 1e11 else ("GFLOP/s", 1e9)
    if name.startswith(("copy", "write")):
        unit, scale = "GB/s", 1e9
    low, high = figures["min"] / scale, figures["max"] / scale
    return f"  {name:<26}{figures['median'] / scale:>8.2f} {unit} ({low:.2f}-{high:.2f})" + (
        f"  then failed: {figures['reason']}" if "reason" in figures else ""
    )


def for_readme(results: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown table for each device, with a line on the conditions above it."""
    parts = []
    for device in ("cuda", "cpu"):
        by_model = {r["model"]: r for r in results if r["device"] == device}
        ordered = [by_model[model] for model in MODELS if model in by_model]
        if ordered:
            parts.append(_device_table(ordered))
    return "\n\n".join(parts)


def _device_table(results: list[dict[str, Any]]) -> str:
    largest, conditions = results[-1], results[-1]["conditions"]
    names = [MODELS[result["model"]] for result in results]
    of_last = [f"{what}, {names[-1]}" for what in ("MFU", "memory")]
    head = ["contender", "dtype", *names, *of_last, "relative L2"]
    rows = []
    for entry in entries(largest["device"]):
        found = [find(result, entry.name, entry.dtype) for result in results]
        if any(found):
            rows.append([entry.name, entry.dtype, *_cells(results, found)])
    known = conditions["cpu_features"] if largest["device"] == "cpu" else []
    features = f" ({', '.join(known)})" if known else ""
    dates = sorted({result["conditions"]["date"][:10] for result in results})
    about = (
        f"{conditions['chip']}{features}, {conditions['threads']} threads, torch "
        f"{conditions['versions']['torch']}, {' to '.join(sorted({dates[0], dates[-1]}))}, "
        + ", ".join(
            f"{name}: {result['input']['records']} records ({result['input']['tokens']:,} tokens)"
            for name, result in zip(names, results, strict=True)
        )
    )
    lines = [" | ".join(row) for row in [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]]
    return about + ":\n\n" + "\n".join(f"| {text} |" for text in lines)


def _cells(results: list[dict[str, Any]], found: list[dict[str, Any] | None]) -> list[str]:
    """Return a contender's cells: its speed with each model, then what the largest shows."""
    if not any(row and row["seconds"] for row in found):
        reason = next(row["reason"] for row in found if row)
        return [reason] + [""] * (len(found) + 2)
    cells = []
    for result, row in zip(results, found, strict=True):
        if row is None:
            cells.append("")
        elif not row["seconds"]:
            cells.append(row["reason"])
        else:
            times = ratio(row, find(result, BASE.name, BASE.dtype))
            speed = f"{row['tokens_per_second']:,.0f}"
            cells.append(speed if times is None else f"{speed} ({times:.1f} x)")
    last = found[-1] if found[-1] and found[-1]["seconds"] else None
    if last is None:
        cells += ["", ""]
    else:
        cells.append("" if last["mfu"] is None else f"{last['mfu']:.0%}")
        cells.append(f"{last['peak_bytes'] / 1e9:.1f} GB")
    worst = [row["relative_l2"]["worst"] for row in found if row and row["seconds"]]
    return [*cells, f"{max(worst):.0e}" if worst else ""]


def committed(folder: Path = ROOT / "benchmarks" / "results") -> list[dict[str, Any]]:
    """Return the results that lie in `folder`, of the models that the README shows."""
    found = [read_json(path) for path in sorted(folder.glob("c*-esm2_*.json"))]
    return [result for result in found if result["model"] in MODELS]


def with_table(readme: str, results: Sequence[dict[str, Any]]) -> str:
    """Return the README's text with the table between its two markers."""
    return put_between(readme, BEGIN, END, for_readme(results))


def put_between(text: str, begin: str, end: str, content: str) -> str:
    """Return `text` with `content` in place of what stands between two markers."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not rest or end not in rest:
        raise ValueError(f"the document lacks {begin} and {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main() -> int:
    """Write the README's table and return the exit status."""
    path = ROOT / "README.md"
    write_text(path, with_table(path.read_text("utf-8"), committed()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
