"""All tests marked ``gpu``, and what became of each, also of those that there was no time for.

As a plugin of pytest this module writes a line when a test is found and when it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.part import Task
from packedesm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LINES = "PACKEDESM_GPU_TESTS"  # names the file of the lines
MARK = "mark.gpu"


def measure(task: Task) -> None:
    """Run the tests and save what became of them; UserError if each was skipped."""
    lines = task.found.with_name("tests.jsonl")
    printed = task.found.with_name("tests.txt")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        __name__,
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "addopts=--strict-markers", *map(str, files())]
    environment = os.environ | {LINES: str(lines)}
    with printed.open("w") as handle, suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=handle,
            stderr=subprocess.STDOUT,
            timeout=task.end - time.monotonic(),
        )
        if done.returncode not in (0, 1) or not lines.exists():
            last = printed.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"pytest ended with status {done.returncode}: {''.join(last)}")
    result = summary([json.loads(line) for line in lines.read_text().splitlines()])
    task.save(result)
    if result["not_run"]:
        task.in_time()
    elif result["skipped"] and not result["passed"] and not result["failed"]:
        raise UserError("; ".join(sorted(set(result["skipped"].values()))))


def files() -> list[Path]:
    """Return the files that hold tests marked ``gpu``: the others need more packages."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if MARK in path.read_text("utf-8")]


def summary(lines: list[dict[str, str]]) -> dict[str, Any]:
    """Return names of tests by what became of them, with reasons and seconds."""
    ended = {line["test"]: line for line in lines if "outcome" in line}
    outcomes = ("passed", "failed", "skipped")
    by_outcome = {o: {t: x for t, x in ended.items() if x["outcome"] == o} for o in outcomes}
    return {
        "passed": {test: line["seconds"] for test, line in by_outcome["passed"].items()},
        "failed": {test: line["reason"] for test, line in by_outcome["failed"].items()},
        "skipped": {test: line["reason"] for test, line in by_outcome["skipped"].items()},
        "not_run": [line["test"] for line in lines if line["test"] not in ended],
    }


def pytest_collection_finish(session: Any) -> None:
    """Write which tests there are."""
    for item in session.items:
        write_line({"test": item.nodeid})


def pytest_runtest_logreport(report: Any) -> None:
    """Write what became of a test: its own phase, or that of a fixture that did not pass."""
    if report.when == "call" or report.outcome != "passed":
        reason = reason_of(report)
        seconds = round(report.duration, 2)
        line = {"test": report.nodeid, "outcome": report.outcome, "reason": reason}
        write_line(line | {"seconds": seconds})


def reason_of(report: Any) -> str:
    """Return the reason of a skip, or the last line of what a failure says."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or "")
    return text.strip().partition("\n")[0][:300]


def write_line(line: dict[str, Any]) -> None:
    """Add a line, at once."""
    with Path(os.environ[LINES]).open("a") as handle:
        handle.write(json.dumps(line) + "\n")
