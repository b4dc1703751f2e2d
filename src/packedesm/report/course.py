"""How far all jobs of a run were at which time, from what they say of their packs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np

from packedesm.embedding.pack import read_packs
from packedesm.embedding.record import ShardRun
from packedesm.files import reading
from packedesm.paths import Paths

TIME_POINTS = 80  # more would not be seen and would weigh the page down


def packs_of(paths: Paths, run: ShardRun) -> dict[str, np.ndarray]:
    """Return what a job says of its packs, see `read_packs`; Damaged if it did not write that."""
    path = paths.shard_packs(run.shard)
    with reading(path, sha256=run.packs_sha256):
        return read_packs(path)


def timelines(
    runs: Sequence[ShardRun], packs: Sequence[dict[str, np.ndarray]]
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Return when each job's packs were done, for `course_of`; `packs` are of `packs_of`."""
    starts = [datetime.fromisoformat(run.started) for run in runs]
    return [
        (
            (start - min(starts)).total_seconds() + run.seconds.setup,
            done["finished_seconds"],
            done["residues"],
        )
        for start, run, done in zip(starts, runs, packs, strict=True)
    ]


def course_of(shards: Iterable[tuple[float, np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """Return how many residues all jobs together had embedded at some points of time.

    Parameters
    ----------
    shards
        For each shard the second at which it began to embed, from the first job's start, the
        seconds from then at which its packs were done (ascending), and the residues of these packs.

    Returns
    -------
    dict
        ``seconds`` from the first job's start, from the first pack's beginning to the last one's
        end, at even distances; and the ``residues`` that were done by each.
    """
    lines = [
        (begin + np.append(0, finished), np.append(0, np.cumsum(residues)))
        for begin, finished, residues in shards
        if len(finished)
    ]
    start, stop = min(line[0][0] for line in lines), max(line[0][-1] for line in lines)
    packs = sum(len(line[0]) - 1 for line in lines)
    seconds = np.linspace(start, stop, min(TIME_POINTS, max(4, packs // 2)) + 1)
    done = np.sum([np.interp(seconds, *line) for line in lines], axis=0)
    return {"seconds": seconds.tolist(), "residues": done.tolist()}
