"""One model, one sample of records, all contenders: load, warm up, choose budgets, time in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Task
from benchmarks.limits import SIZES, Sizes
from benchmarks.worker import Answer, Failed, Worker
from packedesm.esm2.geometry import Geometry

WARM_UP = (3, 50)  # records and residues: enough to load libraries
COMPARED = 64  # records whose vectors are compared with the reference


class Comparison:
    """Measures contenders; `result` holds what is known so far.

    Parameters
    ----------
    geometry
        Size of the model.
    sequences
        What is embedded.
    device, threads
        Where, and with how many CPU threads each contender computes.
    scratch
        Folder of checkpoints and temporary files.
    deadline
        Time on `time.monotonic` after which nothing new is started.
    save
        Called with `result` whenever it has changed.
    say
        Called with a line for people when a contender was timed first, or cannot be run.
    limit_sizes
        What the hardware's limits are measured with; default: by device.
    """

    def __init__(
        self,
        geometry: Geometry,
        sequences: Sequence[str],
        *,
        device: str,
        threads: int,
        scratch: Path,
        deadline: float,
        save: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        limit_sizes: Sizes | None = None,
    ) -> None:
        self.geometry, self.sequences = geometry, list(sequences)
        self.device, self.threads, self.scratch = device, threads, scratch
        self.deadline, self._save, self._say = deadline, save, say
        self.limit_sizes = limit_sizes or SIZES[device]
        lengths = np.array([len(sequence) for sequence in sequences])
        self.result: dict[str, Any] = {
            "device": device,
            "geometry": {**vars(geometry), "parameters": geometry.parameters},
            "input": {
                "records": len(sequences),
                "residues": int(lengths.sum()),
                "tokens": int((lengths + 2).sum()),
                "longest": int(lengths.max()),
            },
            "flops": geometry.flops(lengths + 2),
            "limits": {},
            "rows": [],
        }
        self._limits: dict[str, list[float]] = {}  # figures of each so far
        self._workers: list[Worker] = []

    def run(self, chosen: Sequence[Entry], repeats: int) -> None:
        """Measure `chosen`, each `repeats` times, in rounds that begin at different places."""
        try:
            self._prepare()
            loading = [(entry, self._load(entry)) for entry in chosen]
            for _, worker in loading:
                worker.wait()  # nothing is timed while others load
            limits = self._start_limits(sorted({entry.dtype for entry in chosen} - {"int8"}))
            running = [started for pair in loading if (started := self._enter(*pair))]
            for number in range(1, repeats):
                self._measure_limits(limits)
                shift = number * len(running) // repeats
                for row, worker in [*running[shift:], *running[:shift]]:
                    self._repeat(row, worker)
        finally:
            for worker in self._workers:
                worker.close()

    def _worker(self, module: str, keep_memory: bool = True) -> Worker:
        self._workers.append(Worker(f"benchmarks.{module}", self.threads, keep_memory))
        return self._workers[-1]

    def _prepare(self) -> None:
        """Make the weights and the reference's vectors of some of the records."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        worker = self._worker("preparation")
        worker.call("load", self.scratch, self.geometry)
        self._checkpoint = worker.call("checkpoint").value
        self._compared = slice(0, None, -(-len(self.sequences) // COMPARED))
        compared = self.sequences[self._compared]
        self._reference = worker.call("reference", compared, self.device, self.threads).value
        worker.close()

    def _start_limits(self, dtypes: list[str]) -> Worker:
        worker = self._worker("limits")
        worker.call("load", self.device, dtypes, self.geometry, self.limit_sizes, self.scratch)
        self._limits = {name: [] for name in worker.call("names").value}
        self._measure_limits(worker)
        return worker

    def _measure_limits(self, worker: Worker) -> None:
        """Measure each limit once more; one that cannot be measured tells why, as a row does."""
        for name, figures in self._limits.items():
            limit = self.result["limits"].setdefault(name, {})
            if "reason" in limit or (figures and time.monotonic() > self.deadline):
                continue
            try:
                if time.monotonic() > self.deadline:
                    raise Failed("not run: the time was up")
                figures.append(worker.call("measure", name).value)
            except Failed as failed:
                limit["reason"] = str(failed)
            else:
                median = statistics.median(figures)
                limit |= {"median": median, "min": min(figures), "max": max(figures)}

    def _load(self, entry: Entry) -> Worker:
        """Let a contender load; all do so at once, which no figure depends on."""
        scratch = self.scratch / "".join(c if c.isalnum() else "-" for c in entry.key)
        scratch.mkdir(exist_ok=True)
        task = Task(self._checkpoint, self.device, self.threads, scratch)
        worker = self._worker(f"contenders.{entry.module}", entry.keep_memory)
        worker.ask("load", task, entry.dtype, **entry.options)
        return worker

    def _enter(self, entry: Entry, worker: Worker) -> tuple[dict[str, Any], Worker] | None:
        """Add a contender's row and time it once; None if it cannot be run."""
        row = {"name": entry.name, "dtype": entry.dtype, "reason": None, "seconds": []}
        self.result["rows"].append(row)
        try:
            row["versions"] = worker.answer().value
            if time.monotonic() > self.deadline:
                raise Failed("not run: the time was up")
            self._choose_budget(worker, entry, row)
            self._time_first(worker, row)
        except Failed as failed:
            row["reason"] = str(failed)
            worker.close()
        self._update()
        self._say(table.line(self.result, row))
        return None if row["reason"] else (row, worker)

    def _choose_budget(self, worker: Worker, entry: Entry, row: dict[str, Any]) -> None:
        """Leave the worker prepared with the budget that was fastest in one trial of each."""
        count, length = WARM_UP
        worker.call("prepare", [s[:length] for s in self.sequences[:count]], entry.budgets[0])
        row["warm_up_seconds"] = worker.call("embed").seconds
        # A budget above all tokens makes one batch of everything: no choice for a real input.
        tokens = self.result["input"]["tokens"]
        budgets = [b for b in entry.budgets if b < tokens] or [entry.budgets[0]]
        trials = row["trials"] = {}
        for budget in budgets if len(budgets) > 1 else []:
            worker.call("prepare", self.sequences, budget)
            try:
                trials[budget] = worker.call("embed").seconds
            except Failed as failed:  # out of memory, say: too much for this contender
                if budget == budgets[0]:
                    raise
                trials[budget] = str(failed)
        timed = [budget for budget in trials if isinstance(trials[budget], float)]
        row["budget"] = min(timed, key=trials.get, default=budgets[0])
        worker.call("prepare", self.sequences, row["budget"])

    def _time_first(self, worker: Worker, row: dict[str, Any]) -> None:
        """Time a contender, and record the distance of its vectors from the reference's."""
        answer = worker.call("embed")
        found = worker.call("vectors").value if answer.value is None else answer.value
        distances = relative_l2(found[self._compared], self._reference)
        if not np.isfinite(distances["worst"]):
            raise Failed("its vectors are not finite")
        row["relative_l2"] = distances
        _record(row, answer)

    def _repeat(self, row: dict[str, Any], worker: Worker) -> None:
        if row["reason"] or time.monotonic() > self.deadline:
            return
        try:
            _record(row, worker.call("embed"))
        except Failed as failed:
            row["reason"] = str(failed)
        self._update()

    def _update(self) -> None:
        """Derive the rates of all rows anew, as the limits change, and hand the result over."""
        for row in self.result["rows"]:
            if row["seconds"]:
                row |= self._rates(row)
        self._save(self.result)

    def _rates(self, row: dict[str, Any]) -> dict[str, Any]:
        seconds, size = row["seconds"], self.result["input"]
        median = statistics.median(seconds)
        peak = self.result["limits"].get(f"matmul {row['dtype']}", {}).get("median")
        return {
            "tokens_per_second": size["tokens"] / median,
            "tokens_per_second_min": size["tokens"] / max(seconds),
            "tokens_per_second_max": size["tokens"] / min(seconds),
            "residues_per_second": size["residues"] / median,
            "mfu": self.result["flops"] / median / peak if peak else None,
        }


def relative_l2(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return how far vectors (N, width) are off: the median and the worst of the relative L2."""
    distances = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
    return {"median": float(np.median(distances)), "worst": float(distances.max())}


def _record(row: dict[str, Any], answer: Answer) -> None:
    row["seconds"].append(answer.seconds)
    row.setdefault("apart_seconds", []).append(answer.apart)
    row.setdefault("cpu_seconds", []).append(answer.cpu_seconds)
    row["peak_bytes"] = max(row.get("peak_bytes", 0), answer.peak_bytes)
