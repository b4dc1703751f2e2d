"""The whole job as users run it: `packedesm embed`, from a FASTA file to verified files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import MAX_LENGTH, SEED
from benchmarks.gpu_parts.part import Task
from benchmarks.gpu_parts.sizes import records
from benchmarks.preparation import load
from benchmarks.sample import EXAMPLE, draw
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json

VERIFIED = 3  # records, each again through fair-esm in float32


def measure(task: Task) -> None:
    """Run a small job in each dtype, then a large one if what the small one took promises its end.

    The first on a machine compiles kernels and finds the size of packs; the second shows what
    remains of that.
    """
    assert task.model
    checkpoint = load(task.scratch, MODELS[task.model]).path
    count = records(task.model, task.device)
    result: dict[str, Any] = {"rows": []}
    dtypes = ("auto", "bfloat16") if task.device == "cuda" else ("auto",)
    for number, dtype in [(count.first, "auto"), *((count.many, dtype) for dtype in dtypes)]:
        if not task.in_time() or (number > count.first and not promised(result, number, task)):
            return
        result["rows"].append(embed(task, checkpoint, number, dtype))
        task.save(result)


def promised(result: dict[str, Any], number: int, task: Task) -> bool:
    """Tell whether a job of so many records will end in time, by what the first one took."""
    first = result["rows"][0]
    more = first["embedding_seconds"] * (number / first["records"] - 1)
    task.cut |= time.monotonic() + first["seconds"] + more > task.end
    return not task.cut


def embed(task: Task, checkpoint: Path, number: int, dtype: str) -> dict[str, Any]:
    """Embed so many records and return what the command took and what it reports itself."""
    with tempfile.TemporaryDirectory(dir=task.found.parent) as folder:
        fasta = Path(folder) / "input.fasta"
        drawn = draw(EXAMPLE, number, MAX_LENGTH, SEED)
        fasta.write_text("".join(f">{row}\n{text}\n" for row, text in enumerate(drawn)))
        command = [sys.executable, "-m", "packedesm.cli", "embed", str(fasta)]
        command += ["-o", f"{folder}/out", "--model", str(checkpoint), "--dtype", dtype]
        command += [
            "--device",
            task.device,
            "--deduplicate",
            "false",
            "--verify-sequences",
            str(VERIFIED),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
        return {"records": number, "seconds": seconds, **reported(Path(folder) / "out")}


def reported(folder: Path) -> dict[str, Any]:
    """Return what metrics.json and verification.json of a finished run say."""
    metrics = read_json(folder / "metrics.json")
    (run,), speed = metrics["runs"], metrics["throughput"]["all"]
    plan = {name: run["plan"][name] for name in ("dtype", "attention", "kernels", "token_budget")}
    return {
        **plan,
        "device": run["device"]["name"],
        "tokens": speed["tokens"],
        "setup_seconds": speed["setup_seconds"],
        "embedding_seconds": speed["seconds"],
        "forward_seconds": speed["forward_seconds"],
        "wait_seconds": speed["wait_seconds"],
        "tokens_per_second": speed["tokens_per_second"],
        "mfu": speed["mfu"],
        "relative_l2": read_json(folder / "verification.json")["worst"]["relative_l2"],
        "gpu": {name: value for name, value in run["gpu"].items() if name != "samples"},
    }
