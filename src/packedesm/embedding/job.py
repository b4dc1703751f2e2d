"""One embedding job: the records of one shard on one device."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from packedesm.device.auto import load_model
from packedesm.device.cpu import instructions, slow_reason
from packedesm.device.gpu_monitor import GPUMonitor
from packedesm.device.hardware import leased_device
from packedesm.device.memory import keep_freed_memory
from packedesm.device.precision import fix_precision
from packedesm.embedding.begin import Beginning
from packedesm.embedding.cost import in_words, job_flops, masked_seconds, passes_left
from packedesm.embedding.fallback import Fallback, Means
from packedesm.embedding.feed import Feed, FromFeed
from packedesm.embedding.output import write_shard
from packedesm.embedding.pack import FinishedPack, PackStatistics, total_fill
from packedesm.embedding.peaks import Gauge, Peaks, peaks
from packedesm.embedding.record import JobFacts, ShardRun
from packedesm.embedding.replan import PackPlan
from packedesm.embedding.resume import ShardState
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.embedding.signals import stopping_on_signals
from packedesm.embedding.workload import workload
from packedesm.errors import plural, quote
from packedesm.esm2.checkpoints import unchanged_weights
from packedesm.esm2.int8 import INT8
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Checkpoint
from packedesm.files import RECORD_DIGEST
from packedesm.options import EmbedOptions, EmbedPlan, JobOptions, ReferenceOptions
from packedesm.outputs import Array, heads_of
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items
from packedesm.packing.packer import Packs
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.reference.vectors import FIRST, Protein, ReferenceVectors
from packedesm.sequences.index import read_rows
from packedesm.sequences.summary import read_summary, reading_sharded, written_digest
from packedesm.versions import versions

logger = logging.getLogger(__name__)


def embed_shard(
    paths: Paths,
    shard: int,
    checkpoint: Checkpoint,
    options: EmbedOptions,
    job: JobOptions,
    *,
    threads: int,
) -> ShardRun:
    """Embed one shard: write its arrays, ``packs.tsv`` and ``run.json``, and return the latter.

    What is finished is committed to `Paths.shard_state` as it goes, and whoever runs this again
    goes on from there. On SIGTERM, SIGINT and SIGHUP the process commits what is finished and
    exits. Before the first pack, a few sampled proteins are embedded as one pack and compared with
    their reference, which must be there (`packedesm.reference.step`).

    Parameters
    ----------
    paths, shard
        Where the shard's FASTA lies and the results go.
    threads
        CPU threads that torch may use.

    Raises
    ------
    UserError
        If the options do not fit the device, or the checkpoint does not load or is not the one
        that was recorded, or a number format does not carry its weights.
    Fault
        If the disk is full, or another process has taken the shard over, or the device cannot go on
        with what an earlier attempt has finished, or computes wrong.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    precision = fix_precision()
    summary = read_summary(paths)
    items = _items(paths, shard, options, summary)
    fasta_sha256 = written_digest(summary, paths, paths.shard_fasta(shard))
    proteins = _first_proteins(paths, checkpoint, options, job)
    with stopping_on_signals() as check_stop, ShardState(paths.shard_state(shard)) as state:
        with (
            leased_device(job.device) as device,
            GPUMonitor(device.uuid) as monitor,
            unchanged_weights(checkpoint),
        ):
            asked = (paths, checkpoint, options, job, device, proteins, workload(items))
            begin = Beginning(*asked).begin
            plan, runner, check = begin(state, fasta_sha256, summary[RECORD_DIGEST])
            planned = items.plan(plan.token_budget)
            packs = PackPlan(items.tokens, planned, state.replans(), records=items.records)
            _say(items, planned, plan, device.torch_device, precision)
            feed = Feed(items, packs, job, check_stop)
            load = partial(load_model, checkpoint, torch.float32, needs=heads_of(plan.arrays))
            name = partial(item_name, paths, items)
            found = embed_packs(runner, feed, state, load_float32=load, name=name)
        statistics = state.statistics().values()
        facts = JobFacts(
            shard=shard,
            records=items.records,
            **items.counts(),
            checkpoint=checkpoint,
            options=options,
            plan=plan,
            first_check=check.as_json() if check else None,
            fasta_sha256=fasta_sha256,
            packs=len(statistics),
            fill=total_fill(statistics),
            flops=job_flops(checkpoint.geometry, items),
            matmul_peak_flops=found.flops,
            matmul_peak_range=found.range,
            matmul_peak_reason=found.reason,
            precision=precision,
            device=device.describe(),
            gpu=_gpu(monitor.summary(), state),
            host=platform.node(),
            versions=versions(),
        )
        return write_shard(paths, items, state, facts)


def _items(paths: Paths, shard: int, options: EmbedOptions, summary: Mapping[str, Any]) -> Items:
    """Return what a job embeds of the records of its shard."""
    files = (paths.shard_fai(shard), paths.shard_digests(shard))
    with reading_sharded(paths, *files, summary=summary):
        dataset = SequenceDataset(paths.shard_fasta(shard), options.length)
    return Items.of(dataset, options.arrays)


def _first_proteins(
    paths: Paths, checkpoint: Checkpoint, options: EmbedOptions, job: JobOptions
) -> tuple[Protein, ...]:
    """Return the proteins of the first check, with their reference."""
    sample = ReferenceOptions(options.length, options.arrays, job.sequences, job.seed)
    return ReferenceVectors.read(paths, FIRST, sample, checkpoint.sha256).proteins


def embed_packs(
    runner: AsyncInferenceRunner,
    feed: Feed,
    state: ShardState,
    *,
    load_float32: Callable[[torch.device], PackedESM2],
    name: Callable[[int], str],
) -> Peaks:
    """Embed and commit the packs that earlier attempts have not committed.

    Returns what the device could have computed meanwhile.

    Parameters
    ----------
    load_float32
        Gives the model in float32 on a device.
    name
        Gives what the user calls an item.
    """
    job = feed.job
    committed = state.committed(feed.packs)
    gauge = _gauge(runner, feed.items, committed.values())
    before = state.timing("peak", gauge.measure)
    _say_masked(runner, feed.items, committed.values(), before.flops)
    passed = sum(pack.passed for pack in committed.values())
    with (
        state.committing(
            seconds=job.commit_seconds, packs=job.commit_packs, peak=before.flops
        ) as commit,
        Progress("embedding", feed.items.passed, "residues", before=passed) as progress,
    ):

        def sink(pack: FinishedPack) -> None:
            commit(pack)
            progress.add(pack.statistics.passed)

        means = Means(
            embed=FromFeed(feed, state.seconds_before),
            tokens=feed.items.tokens,
            load_float32=load_float32,
            name=name,
            remember=state.remember_replans,
        )
        Fallback(means, feed.packs, sink, committed, state.deferred()).run(runner)
    return peaks(state.embedding_attempts(), gauge.measure())


def _gauge(runner: AsyncInferenceRunner, items: Items, done: Collection[PackStatistics]) -> Gauge:
    """Return what measures the peak, to suit what is left to do."""
    counts = items.counts()
    tokens = counts["tokens"] + counts["masked_tokens"]
    left = 1 - sum(pack.tokens for pack in done) / tokens if tokens else 0.0
    operations = left * job_flops(runner.model.geometry, items)
    return Gauge(runner, min(tokens, runner.plan.token_budget), operations)


def item_name(paths: Paths, items: Items, item: int) -> str:
    """Return what the user calls an item: a record by its id and its number in its file.

    Of a masked copy it is said which residue is masked.
    """
    (place,) = items.records_of(np.array([item]))
    row = int(items.dataset.rows[place])
    with reading_sharded(paths, paths.shard_index):
        (found,) = read_rows(paths.shard_index, np.array([row]))
    name = f"record {found['record']} ({quote(found['id'])})"
    if item < items.records or items.copies is None:
        return name
    return f"{name} with residue {items.copies[item - items.records].masked + 1} masked"


def _say(
    items: Items,
    packs: Packs,
    plan: EmbedPlan,
    device: torch.device,
    precision: dict[str, bool],
) -> None:
    logger.info("%s on %s, files in %s", plan.dtype, device, plan.output_dtype)
    if plan.dtype == INT8:
        logger.info("int8: %s", plan.reasons["dtype"])
    if device.type == "cpu":
        logger.info("the CPU's instructions: %s", instructions() or "unknown")
    if slow := slow_reason(device, plan.dtype):
        logger.warning("dtype %s: %s", plan.dtype, slow)
    if device.type == "cuda":
        used = ", ".join(name for name, is_used in precision.items() if is_used)
        logger.info("lower precision within products: %s", used or "none (no TF32)")
    logger.info("attention backend %s: %s", plan.attention, plan.reasons["attention"])
    logger.info("kernels between products by %s: %s", plan.kernels, plan.reasons["kernels"])
    logger.info(
        "%s in %s of at most %d tokens, fill %.1f%%",
        *(plural(items.records, "record"), plural(len(packs), "pack")),
        *(plan.token_budget, 100 * packs.fill),
    )
    if "contacts" in plan.arrays:
        logger.warning(told_contacts(items.dataset.embedded_lengths, plan.output_dtype))


def told_contacts(residues: np.ndarray, output_dtype: str) -> str:
    """Return in words what the contacts of records of so many `residues` take on the disk."""
    size = Array.named("contacts").size(residues, 0, output_dtype)
    told = f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
    return (
        f"the contacts of {plural(len(residues), 'record')} take {told} on the disk, and as much "
        "again while shards are merged"
    )


def _say_masked(
    runner: AsyncInferenceRunner,
    items: Items,
    done: Collection[PackStatistics],
    peak: float | None,
) -> None:
    """Tell what masked passes will cost, before the first one."""
    passes, tokens = passes_left(items, done)
    if passes:
        seconds = masked_seconds(runner, items, tokens, peak)
        left = "what is left: " if any(pack.masked for pack in done) else ""
        words = in_words(runner.plan.arrays, items.records, passes, seconds)
        logger.info("%s%s", left, words)


def _gpu(summary: dict[str, Any], state: ShardState) -> dict[str, Any]:
    if state.seconds_before and summary["energy_j"] is not None:
        return summary | {"energy_j": None, "reason": "earlier attempts did not tell theirs"}
    return summary
