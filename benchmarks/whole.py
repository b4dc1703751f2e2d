"""Time whole processes, from their start to their files: `packedesm embed` and fair-esm.

    python -m benchmarks.whole --model esm2_t30_150M_UR50D

Verification is off, since fair-esm does without. fair-esm takes its best set-up: sorted by length,
the fastest of some batch sizes, freed memory kept. All run once in each round, from another one on
in each. The JSON is written again after every process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import compare, preparation, table
from benchmarks.comparison import relative_l2
from benchmarks.contenders import PADDED
from benchmarks.sample import EXAMPLE, draw
from benchmarks.worker import KEEP_MEMORY
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json, write_json, write_text

BEGIN, END = "<!-- whole processes: begin -->", "<!-- whole processes: end -->"
SCRIPT = Path(__file__).parent / "contenders" / "fair_esm_process.py"
FAIR_ESM = "fair-esm"
# Of packedesm, by what the CPU shall pass for: without instructions for it bfloat16 is slow.
DTYPES = {"": ("float32", "bfloat16", "int8"), "avx2": ("float32", "int8")}
# By which a CPU passes for a lesser one; MKL has a switch of its own.
LESSER = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


class Process(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_seconds: float


class Job(NamedTuple):
    """What every process computes, and with what."""

    checkpoint: Path
    fasta: Path
    folder: Path
    environment: dict[str, str]

    def fair_esm(self, tokens: int) -> Process:
        """Run fair-esm with batches of so many tokens."""
        command = [SCRIPT, self.checkpoint, self.fasta, tokens, self.folder / f"{FAIR_ESM}.npy"]
        return _run([sys.executable, *map(str, command)], self.environment | KEEP_MEMORY)

    def packedesm(self, dtype: str) -> Process:
        """Run the command into a new folder."""
        out = self.folder / dtype
        shutil.rmtree(out, ignore_errors=True)
        options = ["--model", self.checkpoint, "--dtype", dtype, "--output-dtype", "float32"]
        command = ["embed", self.fasta, "-o", out, *options, "--verify-sequences", 0]
        program = [sys.executable, "-m", "packedesm.cli", *map(str, command)]
        return _run(program, self.environment)

    def vectors(self, name: str) -> np.ndarray:
        """Return what the last process of this name wrote, float32 (N, width)."""
        if name == FAIR_ESM:
            return np.load(self.folder / f"{name}.npy")
        return np.load(self.folder / name / "mean.npy")


def _run(command: list[str], environment: dict[str, str]) -> Process:
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, env=environment, stdout=told, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            told.seek(0)
            raise SystemExit(told.read().decode(errors="replace"))
    return Process(seconds, usage.ru_utime + usage.ru_stime)


def measure(
    job: Job, dtypes: Sequence[str], repeats: int, save: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Return a row for each program and number format; `save` is called with the rows so far."""
    trials = {tokens: job.fair_esm(tokens).seconds for tokens in PADDED}
    tokens = min(trials, key=trials.__getitem__)
    rows = [
        {"name": name, "dtype": dtype, "seconds": [], "cpu_seconds": []}
        for name, dtype in ((FAIR_ESM, "float32"), *(("packedesm embed", x) for x in dtypes))
    ]
    rows[0] |= {"budget": tokens, "trials": trials}
    for number in range(repeats):
        for row in (*rows[number:], *rows[:number]):
            own = row is rows[0]
            taken = job.fair_esm(tokens) if own else job.packedesm(row["dtype"])
            row["seconds"].append(taken.seconds)
            row["cpu_seconds"].append(taken.cpu_seconds)
            save(rows)
    exact = job.vectors(FAIR_ESM)
    for row in rows[1:]:
        row["relative_l2"] = relative_l2(job.vectors(row["dtype"]), exact)
    save(rows)
    return rows


def for_readme(results: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown table of all results."""
    lines = [
        "| CPU | model, input | program | dtype | seconds | relative L2 |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for result in results:
        for row in result["rows"]:
            lines.append("| " + " | ".join(_cells(result, row)) + " |")
    return "\n".join(lines)


def _cells(result: dict[str, Any], row: dict[str, Any]) -> list[str]:
    conditions, size = result["conditions"], result["input"]
    features = result["lesser"] or conditions["cpu_features"][-1]
    cpu = f"{conditions['chip']}, {features}"
    model = f"{table.MODELS[result['model']]}, {size['records']} records"
    times, seconds = table.ratio(row, result["rows"][0]), row["seconds"]
    took = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    off = f"{row['relative_l2']['worst']:.0e}" if "relative_l2" in row else ""
    return [cpu, model, row["name"], row["dtype"], f"{took}, {times:.2f} x", off]


def committed(folder: Path = table.ROOT / "benchmarks" / "results") -> list[dict[str, Any]]:
    """Return the results that lie in `folder`."""
    return [read_json(path) for path in sorted(folder.glob("whole-*.json"))]


def with_table(readme: str, results: Sequence[dict[str, Any]]) -> str:
    """Return the README's text with the table between its two markers."""
    return table.put_between(readme, BEGIN, END, for_readme(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all processes, write the JSON and the README's table, and return the exit status."""
    options = parser().parse_args(arguments)
    sequences = draw(options.fasta, options.records, compare.MAX_LENGTH, compare.SEED)
    options.scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = preparation.load(options.scratch, MODELS[options.model]).checkpoint()
    fasta = options.scratch / "whole.fasta"
    fasta.write_text("".join(f">{row}\n{x}\n" for row, x in enumerate(sequences)))
    lesser = LESSER.get(options.lesser, {})
    head = {
        "model": options.model,
        "conditions": compare.conditions(options),
        "lesser": options.lesser,
        "input": {"records": len(sequences), "residues": sum(map(len, sequences))},
    }
    path = options.results / f"whole-{options.model}{'-' * bool(lesser)}{options.lesser}.json"
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        job = Job(checkpoint, fasta, Path(folder), dict(os.environ) | lesser)
        save = lambda rows: write_json(path, head | {"rows": rows})  # noqa: E731
        rows = measure(job, DTYPES[options.lesser], options.repeats, save)
    print(for_readme([head | {"rows": rows}]))
    readme = table.ROOT / "README.md"
    write_text(readme, with_table(readme.read_text("utf-8"), committed()))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--model", choices=MODELS, default="esm2_t30_150M_UR50D")
    add("--records", type=int, default=60)
    add("--repeats", type=int, default=3)
    add("--lesser", choices=["", *LESSER], default="", help="what the CPU shall pass for")
    add("--fasta", type=Path, default=EXAMPLE)
    add("--results", type=Path, default=table.ROOT / "benchmarks" / "results")
    add("--scratch", type=Path, default=preparation.FOLDER)
    made.set_defaults(device="cpu", threads=compare.cores())
    return made


if __name__ == "__main__":
    sys.exit(main())
