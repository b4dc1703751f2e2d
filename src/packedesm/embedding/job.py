"""One inference job: embed the records of one shard on one device."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from packedesm.config import EMBED_OPTIONS, LENGTH_OPTIONS, pick
from packedesm.device import hardware
from packedesm.device.auto import choose, token_budget
from packedesm.device.gpu_monitor import GPUMonitor
from packedesm.embedding.fallback import Rescue, out_of_memory
from packedesm.embedding.output import publish
from packedesm.embedding.resume import ShardState
from packedesm.embedding.runner import AsyncInferenceRunner, FinishedPack
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import Fault, UserError, quote
from packedesm.esm2.checkpoints import check_weights, load_state
from packedesm.esm2.model import PackedESM2
from packedesm.packing.collator import PackedBatch
from packedesm.packing.dataloader import create_async_dataloader, worker_lost
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import Packs, plan_packs
from packedesm.paths import Layout
from packedesm.progress import Progress
from packedesm.sequences.shards import check_written
from packedesm.sequences.windows import segment_tokens
from packedesm.versions import versions

logger = logging.getLogger(__name__)


def embed_shard(
    layout: Layout,
    shard: int,
    checkpoint: Mapping[str, Any],
    options: Mapping[str, Any],
    job: Mapping[str, Any],
    *,
    threads: int,
) -> dict[str, Any]:
    """Embed one shard: write its arrays, ``packs.tsv`` and ``run.json``, and return the latter.

    What is finished is committed to `Layout.shard_state` as it goes, and whoever runs this again
    goes on from there. On SIGTERM and SIGINT the process commits what is finished and exits.

    Parameters
    ----------
    layout, shard
        Where the shard's FASTA lies and the results go.
    checkpoint
        The record that `packedesm.esm2.checkpoints.prepare` wrote.
    options
        The configuration's values of `packedesm.config.EMBED_OPTIONS`.
    job
        The configuration's values of `packedesm.config.JOB_OPTIONS`; they change no vector.
    threads
        CPU threads that torch may use.

    Raises
    ------
    UserError
        If the options do not fit the device, or the checkpoint does not load or is not the one
        that was recorded.
    Fault
        If the disk is full, or another process has taken the shard over.
    """
    torch.set_num_threads(threads)
    hardware.keep_freed_memory()
    check_written(layout, layout.shard_fai(shard))
    dataset = SequenceDataset(layout.shard_fasta(shard), **pick(options, LENGTH_OPTIONS))
    with stopping_on_signals() as check_stop, ShardState(layout.shard_state(shard)) as state:
        with hardware.leased_device() as (device, uuid), GPUMonitor(uuid) as monitor:
            weights = check_weights(checkpoint)
            run = _embed(layout, dataset, checkpoint, options, job, state, device, check_stop)
            run["device"] = hardware.describe(device, uuid)
        if check_weights(checkpoint) != weights:
            raise UserError(f"{checkpoint['path']}: changed while it was in use; run again")
        record = {
            "shard": shard,
            "records": len(dataset),
            "residues": int(dataset.embedded_lengths.sum()),
            "tokens": int(dataset.tokens.sum()),
            "shortened": dataset.shortened,
            "model": dict(checkpoint),
            "options": pick(options, EMBED_OPTIONS),
            **run,
            "gpu": _gpu(monitor.summary(), state),
            "host": platform.node(),
            "versions": versions(),
        }
        return publish(layout, shard, dataset, state, record)


def _embed(
    layout: Layout,
    dataset: SequenceDataset,
    checkpoint: Mapping[str, Any],
    options: Mapping[str, Any],
    job: Mapping[str, Any],
    state: ShardState,
    device: torch.device,
    check_stop: Callable[[], None],
) -> dict[str, Any]:
    """Embed what earlier attempts have not, and return what belongs into ``run.json`` about it."""
    geometry, tensors = load_state(checkpoint["path"])
    flops = geometry.flops(segment_tokens(dataset.lengths, *dataset.policy))
    choice = choose(options, geometry, device)
    dtype = getattr(torch, choice["dtype"])
    with _weights_fit(checkpoint, choice["dtype"]):
        model = PackedESM2.from_fair_esm(tensors, geometry, dtype, device=device)
    del tensors
    choice["token_budget"] = token_budget(options, model, choice["attention"]["backend"])
    # One that was measured at the moment would give every attempt its own.
    remembered = ["token_budget"] if options["token_budget"] == "auto" else []
    choice |= _settle(layout, dataset, checkpoint, choice, device, state, remembered)
    ceiling = hardware.measure_matmul_ceiling(device, dtype)
    packs = plan_packs(dataset.tokens, choice["token_budget"])
    _say(dataset, packs, choice, device)
    standing = state.standing()
    kept = {"outputs": choice["outputs"], "output_dtype": getattr(torch, choice["output_dtype"])}
    rescue = Rescue(
        dataset,
        checkpoint["path"],
        device,
        **kept,
        name=partial(record_name, layout, dataset),
        limit=state.token_limit(),
        remember=state.remember_limit,
    )
    runner = AsyncInferenceRunner(
        model,
        device,
        **kept,
        attention=choice["attention"]["backend"],
        token_budget=choice["token_budget"],
        rescue=rescue,
    )
    bounds = {"seconds": job["commit_seconds"], "packs": job["commit_packs"]}
    residues = int(dataset.embedded_lengths.sum())
    before = sum(pack.residues for pack in standing.values())
    with (
        state.committing(choice["outputs"], **bounds) as commit,
        Progress("embedding", residues, "residues", before=before) as progress,
    ):
        left = [number for number in range(len(packs)) if number not in standing]
        feed = partial(_feed, dataset, packs, job, device, check_stop)
        _run(runner, feed, left, commit, progress, state.seconds_before)
    return {
        **choice,
        "packs": len(packs),
        "fill": packs.fill,
        "flops": flops,
        "matmul_ceiling_flops": ceiling,
    }


def _run(
    runner: AsyncInferenceRunner,
    feed: Callable[..., AbstractContextManager[Iterable[PackedBatch]]],
    left: list[int],
    commit: Callable[[FinishedPack], None],
    progress: Progress,
    seconds_before: float,
) -> None:
    """Embed the packs of the numbers `left`; if a worker process is lost, go on without any."""
    done = set()

    def finish(pack: FinishedPack) -> None:
        commit(pack)
        done.add(pack.statistics.pack)
        progress.add(pack.statistics.residues)

    start = time.perf_counter() - seconds_before
    try:
        with feed(left) as batches:
            runner.run(batches, finish, numbers=left, seconds_before=seconds_before)
        return
    except RuntimeError as error:
        if not worker_lost(error):
            raise
        logger.warning("%s; this process reads the rest itself", str(error).splitlines()[0])
    left = [number for number in left if number not in done]
    seconds_before = time.perf_counter() - start
    with feed(left, workers=0) as batches:
        runner.run(batches, finish, numbers=left, seconds_before=seconds_before)


@contextmanager
def _feed(
    dataset: SequenceDataset,
    packs: Packs,
    job: Mapping[str, Any],
    device: torch.device,
    check_stop: Callable[[], None],
    left: list[int],
    workers: int | None = None,
) -> Iterator[Iterator[PackedBatch]]:
    """Give the batches of the packs `left`; no worker process outlives the block."""
    if workers is None:
        workers = _worker_count(job["workers"], device, len(left))
    loader = create_async_dataloader(
        dataset,
        [packs[number] for number in left],
        workers=workers,
        pin_memory=device.type == "cuda",
        seed=job["seed"],
    )
    try:
        yield _until(loader, check_stop)
    except BaseException:
        loader.kill()
        raise


@contextmanager
def _weights_fit(checkpoint: Mapping[str, Any], dtype: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        size = checkpoint["parameters"] * getattr(torch, dtype).itemsize / 1e9
        raise Fault(
            f"{checkpoint['path']}: its weights, {size:.1f} GB in {dtype}, do not fit into the "
            "device's memory; take a smaller model or a larger device"
        ) from error


def _settle(
    layout: Layout,
    dataset: SequenceDataset,
    checkpoint: Mapping[str, Any],
    choice: Mapping[str, Any],
    device: torch.device,
    state: ShardState,
    remembered: list[str],
) -> dict[str, Any]:
    """Hold on to what decides the vectors; return what of it is as in earlier attempts."""
    installed = versions()
    plan = {
        "fasta_sha256": check_written(layout, dataset.fasta),
        "checkpoint_sha256": checkpoint["sha256"],
        **dict(zip(LENGTH_OPTIONS, dataset.policy, strict=True)),
        **{key: choice[key] for key in ("dtype", "output_dtype", "outputs", "token_budget")},
        "attention": choice["attention"]["backend"],
        "device": device.type,
        **{key: installed[key] for key in ("packedesm", "torch")},
    }
    settled = state.settle(plan, remembered)
    return {key: settled[key] for key in ("token_budget", "fasta_sha256")}


def _until(batches: Iterable[PackedBatch], check_stop: Callable[[], None]) -> Iterator[PackedBatch]:
    for batch in batches:
        check_stop()
        yield batch


def record_name(layout: Layout, dataset: SequenceDataset, item: int) -> str:
    """Return what the user calls a record of the shard: its id and its place in the input."""
    row = int(dataset.rows[item])
    found = pq.read_table(layout.shard_index, columns=["id"], filters=pc.field("row") == row)
    return f"record {row + 1} ({quote(found['id'][0].as_py())})"


def _say(dataset: SequenceDataset, packs, choice: dict[str, Any], device: torch.device) -> None:
    backend = choice["attention"]
    logger.info("%s on %s, files in %s", choice["dtype"], device, choice["output_dtype"])
    logger.info("attention backend %s: %s", backend["backend"], backend["reason"])
    logger.info(
        "%d records in %d packs of at most %d tokens, fill %.1f%%",
        *(len(dataset), len(packs), choice["token_budget"], 100 * packs.fill),
    )
    if dataset.shortened:
        logger.warning("%d records are longer than max_length and are cut", dataset.shortened)


def _worker_count(workers: int | str, device: torch.device, packs: int) -> int:
    if workers == "auto":
        # On a CPU the forward pass wants every core, and collating a pack takes a millisecond.
        workers = 2 if device.type == "cuda" else 0
    return min(workers, packs)


def _gpu(summary: dict[str, Any], state: ShardState) -> dict[str, Any]:
    if state.seconds_before and summary["energy_j"] is not None:
        return summary | {"energy_j": None, "reason": "earlier attempts did not tell theirs"}
    return summary
