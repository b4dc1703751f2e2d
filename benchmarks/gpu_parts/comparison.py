"""One model's forward pass beside other programs, and the limits of the hardware."""

from __future__ import annotations

import os
from functools import partial

from benchmarks.compare import MAX_LENGTH, SEED
from benchmarks.comparison import Comparison
from benchmarks.contenders import BASE, entries
from benchmarks.gpu_parts.part import Task
from benchmarks.gpu_parts.sizes import LIMITS, REPEATS, records
from benchmarks.sample import EXAMPLE, draw
from packedesm.esm2.registry import MODELS


def measure(task: Task) -> None:
    """Compare, round by round, until the time is up."""
    assert task.model
    size = records(task.model, task.device)
    comparison = Comparison(
        MODELS[task.model],
        draw(EXAMPLE, size.compared, MAX_LENGTH, SEED),
        device=task.device,
        threads=os.cpu_count() or 1,
        scratch=task.scratch,
        deadline=task.end,
        save=task.save,
        say=partial(print, flush=True),
        limit_sizes=LIMITS[task.device],
    )
    known = entries(task.device)
    chosen = known[: size.contenders]
    base = [entry for entry in known if entry.key == BASE.key and entry not in chosen]
    comparison.run([*chosen, *base], REPEATS[task.device])
    task.in_time()
