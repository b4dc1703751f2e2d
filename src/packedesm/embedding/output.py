"""What a finished embedding job leaves: the shard's arrays, ``packs.tsv`` and ``run.json``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np

from packedesm.embedding.claim import now
from packedesm.embedding.pack import PackStatistics, write_packs
from packedesm.embedding.placing import ShardWriter
from packedesm.embedding.record import JobFacts, Seconds, ShardRun
from packedesm.embedding.resume import ShardState
from packedesm.errors import Fault
from packedesm.esm2.registry import Checkpoint
from packedesm.files import atomic_path, create_npy, file_digest
from packedesm.options import EmbedOptions, EmbedPlan
from packedesm.outputs import Array
from packedesm.packing.items import Items
from packedesm.paths import Paths
from packedesm.sequences.summary import read_summary, written_digest
from packedesm.versions import versions

logger = logging.getLogger(__name__)


def write_shard(paths: Paths, items: Items, state: ShardState, facts: JobFacts) -> ShardRun:
    """Write arrays, ``packs.tsv`` and, last, ``run.json``; delete the state."""
    float32_rows: set[int] = set()
    width, residues = facts.checkpoint.geometry.width, items.dataset.embedded_lengths
    with shard_writer(paths, facts.shard, residues, facts.plan, width=width) as writer:
        for pack in state.finished():
            writer.write(pack)
            if pack.statistics.float32_records:
                float32_rows.update(items.dataset.rows[items.records_of(pack.rows)].tolist())
        state.claim.check()
    statistics = list(state.statistics().values())
    write_packs(paths.shard_packs(facts.shard), statistics)
    run = ShardRun(
        **vars(facts),
        fingerprint=state.fingerprint,
        arrays_sha256={
            name: file_digest(paths.shard_array(facts.shard, name)) for name in facts.plan.arrays
        },
        packs_sha256=file_digest(paths.shard_packs(facts.shard)),
        float32_rows=tuple(sorted(float32_rows)),
        retried_packs=sum(pack.passes > 1 for pack in statistics),
        replanned_packs=sum(
            pack.token_budget < facts.plan.token_budget and not pack.float32_records
            for pack in statistics
        ),
        seconds=replace(_seconds(statistics, *state.setup_and_total_seconds()), **state.timed),
        **state.attempts(),
        finished=now(),
    )
    run.write(paths.shard_run(facts.shard))
    state.remove()
    return run


def finished(
    paths: Paths, shard: int, checkpoint: Checkpoint, options: EmbedOptions
) -> ShardRun | None:
    """Return the record of a shard that `embed_shard` need not embed again.

    None unless its files are whole, and of this very job; on whatever device that ran. Why not is
    logged. Parameters as those of `embed_shard`.
    """
    try:
        run = ShardRun.read(paths.shard_run(shard))
    except FileNotFoundError:
        return None
    except Fault as error:  # its text ends in what to do, which is done here
        _say_again(shard, str(error).rpartition("; ")[0] or str(error))
        return None
    files = {name: paths.shard_array(shard, name) for name in run.arrays_sha256}
    packs = paths.shard_packs(shard)
    same = (
        run.fasta_sha256 == written_digest(read_summary(paths), paths, paths.shard_fasta(shard))
        and (run.checkpoint, run.options) == (checkpoint, options)
        and run.versions == versions()
        and all(path.exists() for path in (*files.values(), packs))
        and file_digest(packs) == run.packs_sha256
        and {name: file_digest(path) for name, path in files.items()} == run.arrays_sha256
    )
    if not same:
        _say_again(shard, "a file of it is damaged, or of another request or version")
        return None
    return run


def _say_again(shard: int, why: str) -> None:
    logger.warning("shard %d was finished and is embedded again: %s", shard, why)


def expect_same_numbers(
    paths: Paths, kept: Sequence[ShardRun | None], options: EmbedOptions, kind: str
) -> None:
    """Raise Fault if shards to be embedded on this `kind` of device would not fit the `kept` ones.

    That is where ``auto`` makes another number format of them: shards of two cannot be merged.
    """
    for run in kept if options.dtype == "auto" else ():
        if run is not None and run.device["kind"] != kind:
            raise Fault(
                f"{paths.root}: shard {run.shard} was embedded in {run.plan.dtype} on "
                f"{run.device['name']}, and dtype auto is another one here; go on on such a "
                "device, or start over with --force"
            )


@contextmanager
def shard_writer(
    paths: Paths,
    shard: int,
    residues: np.ndarray,
    plan: EmbedPlan,
    *,
    width: int,
) -> Iterator[ShardWriter]:
    """Give a `ShardWriter`; its arrays appear if the block succeeds and no record is missing.

    Parameters
    ----------
    paths, shard
        Where the arrays go.
    residues
        int (N,), embedded residues of each record of the shard.
    plan
        Which arrays, and in which number format.
    width
        Numbers in a vector, D.
    """
    with ExitStack() as stack:
        arrays = {}
        for name in plan.arrays:
            array = Array.named(name)
            temporary = stack.enter_context(atomic_path(paths.shard_array(shard, name)))
            shape = (int(array.lines(residues).sum()), *array.line(width))
            arrays[name] = create_npy(temporary, shape, array.dtype(plan.output_dtype))
        writer = ShardWriter(arrays, residues)
        yield writer
        writer.close()


def _seconds(statistics: list[PackStatistics], setup: float, total: float) -> Seconds:
    in_order = sorted(statistics, key=lambda pack: pack.finished_seconds)
    # Packs are computed one after another: what one took is the time since the one before.
    times = [0.0, *(pack.finished_seconds for pack in in_order)]
    masked = [after - before for before, after in pairwise(times)]
    return Seconds(
        setup=setup,
        embedding=times[-1],
        masked=sum(took for took, pack in zip(masked, in_order, strict=True) if pack.masked),
        forward=sum(pack.forward_seconds for pack in statistics),
        waiting=sum(pack.wait_seconds for pack in statistics),
        total=total,
    )
