"""One inference job: embed the records of one shard on one device."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch

from packedesm import hardware
from packedesm.attention import select_backend
from packedesm.checkpoints import load_state
from packedesm.config import LENGTH_OPTIONS, pick
from packedesm.dataset import SequenceDataset
from packedesm.devices import lease, visible_gpus
from packedesm.files import atomic_path, write_json
from packedesm.layout import Layout
from packedesm.loader import create_async_dataloader
from packedesm.model import PackedESM2
from packedesm.models import Geometry
from packedesm.packing import plan_packs
from packedesm.progress import Progress
from packedesm.runner import AsyncInferenceRunner, PackStatistics
from packedesm.segments import segment_tokens
from packedesm.store import shard_writer
from packedesm.telemetry import GPUMonitor
from packedesm.versions import versions

logger = logging.getLogger(__name__)

# Tokens per pack. On a CPU more tokens gain nothing and only leave the caches; on a GPU the
# matrix products are at full speed from about 16,384 tokens on.
_CPU_BUDGET = 4096
_GPU_BUDGET = 32768
# Peak memory per token over the memory of one token's vector: the residual stream, q, k, v and
# the attention's output, twice 4 D in the feed-forward part, and float32 copies while pooling.
_VECTORS_PER_TOKEN = 24


def embed_shard(
    layout: Layout,
    shard: int,
    checkpoint: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    workers: int | str,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """Embed one shard: write its arrays, ``packs.tsv`` and ``run.json``, and return the latter.

    Parameters
    ----------
    layout, shard
        Where the shard's FASTA lies and the results go.
    checkpoint
        The record that `packedesm.checkpoints.prepare` wrote.
    options
        The configuration's values of `packedesm.config.EMBED_OPTIONS`.
    workers, seed
        The configuration's values; they do not change the vectors.
    threads
        CPU threads that torch may use.

    Raises
    ------
    UserError
        If the options do not fit the device or the checkpoint does not load.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    torch.set_num_threads(threads)
    lengths = pick(options, LENGTH_OPTIONS)
    dataset = SequenceDataset(layout.shard_fasta(shard), **lengths)
    with _device() as (device, uuid), GPUMonitor(uuid) as monitor:
        geometry, state = load_state(checkpoint["path"])
        choice = _choose(options, geometry, device)
        model = PackedESM2.from_fair_esm(
            state, geometry, getattr(torch, choice["dtype"]), device=device
        )
        del state
        ceiling = hardware.measure_matmul_ceiling(device, getattr(torch, choice["dtype"]))
        packs = plan_packs(dataset.tokens, choice["token_budget"])
        _say(dataset, packs, choice, device)
        setup = time.perf_counter() - clock
        runner = AsyncInferenceRunner(
            model,
            device,
            attention=choice["attention"]["backend"],
            outputs=choice["outputs"],
            output_dtype=getattr(torch, choice["output_dtype"]),
            token_budget=choice["token_budget"],
        )
        loader = create_async_dataloader(
            dataset,
            packs,
            workers=_worker_count(workers, device, len(packs)),
            pin_memory=device.type == "cuda",
            seed=seed,
        )
        residues = dataset.embedded_lengths
        arrays = (residues, geometry.width, choice["outputs"], choice["output_dtype"])
        with (
            shard_writer(layout, shard, *arrays) as writer,
            Progress("embedding", int(residues.sum()), "residues") as progress,
        ):
            statistics = runner.run(loader, writer.write, lambda pack: progress.add(pack.residues))
        description = hardware.describe(device, uuid)
    _write_packs(layout, shard, statistics)
    record = {
        "shard": shard,
        "records": len(dataset),
        "residues": int(dataset.embedded_lengths.sum()),
        "tokens": int(dataset.tokens.sum()),
        "shortened": dataset.shortened,
        "model": dict(checkpoint),
        **choice,
        "packs": len(packs),
        "fill": packs.fill,
        "flops": geometry.flops(segment_tokens(dataset.lengths, *dataset.policy)),
        "matmul_ceiling_flops": ceiling,
        "seconds": _seconds(statistics, setup, time.perf_counter() - clock),
        "device": description,
        "gpu": monitor.summary(),
        "host": platform.node(),
        "started": started.isoformat(timespec="milliseconds"),
        "versions": versions(),
        "restarts": 0,
    }
    write_json(layout.shard_run(shard), record)
    return record


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """Return the number format that ``dtype: auto`` means on `device`."""
    if dtype != "auto":
        return dtype
    return "float16" if device.type == "cuda" else "float32"


def resolve_output_dtype(output_dtype: str, dtype: str) -> str:
    """Return the number format that ``output_dtype: auto`` means for a computation in `dtype`."""
    if output_dtype != "auto":
        return output_dtype
    return "float32" if dtype == "float32" else "float16"


def resolve_token_budget(
    token_budget: int | str, geometry: Geometry, dtype: str, device: torch.device
) -> int:
    """Return the tokens per pack; ``auto`` uses at most half of a GPU's free memory."""
    if token_budget != "auto":
        return int(token_budget)
    if device.type == "cpu":
        return _CPU_BUDGET
    free, _total = torch.cuda.mem_get_info(device)
    per_token = _VECTORS_PER_TOKEN * geometry.width * getattr(torch, dtype).itemsize
    fitting = free // 2 // per_token // 1024 * 1024
    return max(1024, min(_GPU_BUDGET, fitting))


@contextmanager
def _device() -> Iterator[tuple[torch.device, str | None]]:
    """Give the device of this job, a leased GPU or else the CPU, and the GPU's UUID."""
    gpus, reason = visible_gpus()
    if not gpus:
        logger.info("running on the CPU: %s", reason)
        yield torch.device("cpu"), None
        return
    if not torch.cuda.is_available():
        logger.warning("running on the CPU: this build of torch cannot use %s", gpus[0].name)
        yield torch.device("cpu"), None
        return
    with lease(gpus) as gpu:
        device = torch.device("cuda", gpus.index(gpu))
        torch.cuda.set_device(device)
        logger.info("running on %s, %s", gpu.name, gpu.uuid)
        yield device, gpu.uuid


def _choose(options: Mapping[str, Any], geometry: Geometry, device: torch.device) -> dict[str, Any]:
    """Settle everything that the options leave to ``auto``."""
    dtype = resolve_dtype(options["dtype"], device)
    selection = select_backend(
        options["attention"], device, getattr(torch, dtype), geometry.head_dim
    )
    return {
        "dtype": dtype,
        "output_dtype": resolve_output_dtype(options["output_dtype"], dtype),
        "outputs": list(options["outputs"]),
        "attention": {"backend": selection.name, "reason": selection.reason},
        "token_budget": resolve_token_budget(options["token_budget"], geometry, dtype, device),
    }


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


def _seconds(statistics: list[PackStatistics], setup: float, total: float) -> dict[str, float]:
    return {
        "setup": setup,
        "embedding": statistics[-1].finished_seconds if statistics else 0.0,
        "forward": sum(pack.forward_seconds for pack in statistics),
        "waiting": sum(pack.wait_seconds for pack in statistics),
        "total": total,
    }


def _write_packs(layout: Layout, shard: int, statistics: list[PackStatistics]) -> None:
    columns = list(PackStatistics.__dataclass_fields__)
    table = pd.DataFrame([asdict(pack) for pack in statistics], columns=columns)
    with atomic_path(layout.shard_packs(shard)) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
