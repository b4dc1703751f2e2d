"""Time the arrays of shards: written pack by pack, and merged."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import timed
from packedesm import alphabet
from packedesm.config import resolve, with_arrays
from packedesm.embedding.output import shard_writer
from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.record import Seconds, ShardRun
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import Checkpoint
from packedesm.files import file_digest, fsync
from packedesm.options import EmbedOptions, EmbedPlan, ShardOptions
from packedesm.packing.dataset import SequenceDataset
from packedesm.paths import Paths
from packedesm.results.merge import merge_shards
from packedesm.sequences.fasta import Record
from packedesm.sequences.shards import write_shards

SEED = 1
CONFIG = with_arrays(resolve({"fasta": "made.fasta"}), depth=1)  # the defaults
SHARDING = ShardOptions.of(CONFIG)
PLAN = EmbedPlan("float16", "float16", ("mean",), "sdpa", "torch", 1, reasons={})
SHARDS = 4
WIDTH = 1280
ROWS_PER_PACK = 40  # about what a pack of 16,384 tokens holds


def measure_store(
    _records: list[Record], scratch: Path, sizes: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Write shards of float16 vectors and merge them; beside each, a plain write and a copy."""
    paths = Paths(scratch / "out")
    fasta = scratch / "in.fasta"
    rows = sizes["stored_rows"]
    fasta.write_text("".join(f">{row}\n{_distinct(row)}\n" for row in range(rows)))
    write_shards([fasta], paths, SHARDING, shards=SHARDS, width=WIDTH)
    vectors = np.random.default_rng(SEED).standard_normal((rows, WIDTH)).astype(np.float16)
    plain, copy = scratch / "plain.npy", scratch / "copy.npy"
    result = timed(
        repeats,
        store=partial(_write_stores, paths, vectors),
        plain_write=partial(_write_plain, plain, vectors),
    )
    for shard in range(SHARDS):
        _record(paths, shard)
    result |= timed(
        repeats,
        merge=partial(merge_shards, paths, SHARDS, ["mean"]),
        plain_copy=partial(_copy, plain, copy),
    )
    for times in result.values():
        times["megabytes_per_second"] = vectors.nbytes / 1e6 / times["seconds"]
    return result | {"rows": rows, "width": WIDTH, "shards": SHARDS}


def _distinct(row: int) -> str:
    return "".join(chr(alphabet.RESIDUES[row // 20**place % 20]) for place in range(8))


def _write_stores(paths: Paths, vectors: np.ndarray) -> None:
    """Write all shards, in packs whose records are scattered over the shard."""
    first = 0
    for shard in range(SHARDS):
        dataset = SequenceDataset(paths.shard_fasta(shard), SHARDING.length)
        mine = vectors[first : first + len(dataset)]
        first += len(dataset)
        residues = dataset.embedded_lengths
        order = np.random.default_rng(SEED).permutation(len(dataset))
        with shard_writer(paths, shard, residues, PLAN, width=WIDTH) as writer:
            for start in range(0, len(order), ROWS_PER_PACK):
                rows = order[start : start + ROWS_PER_PACK]
                pack = {"mean": mine[rows]}
                writer.write(FinishedPack(None, rows, residues[rows], pack, rows[:0]))


def _record(paths: Paths, shard: int) -> None:
    """Write what the job of a shard would have recorded; merging reads the digests of it."""
    ShardRun(
        shard=shard,
        records=0,
        residues=0,
        tokens=0,
        masked_passes=0,
        masked_tokens=0,
        checkpoint=Checkpoint("made", "", "", Geometry(1, WIDTH, 1), 0, "", True, False, False),
        options=EmbedOptions.of(CONFIG),
        plan=PLAN,
        first_check=None,
        fasta_sha256=file_digest(paths.shard_fasta(shard)),
        packs=0,
        fill=0.0,
        flops=0.0,
        matmul_peak_flops=1.0,
        matmul_peak_range=None,
        matmul_peak_reason=None,
        precision={},
        device={},
        gpu={},
        host="",
        versions={},
        fingerprint="",
        arrays_sha256={"mean": file_digest(paths.shard_array(shard, "mean"))},
        packs_sha256="",
        float32_rows=(),
        retried_packs=0,
        replanned_packs=0,
        restarts=0,
        recomputed_packs=0,
        discarded_commits=0,
        seconds=Seconds(0.0, 0.0, 0.0, 0.0, 0.0),
        started="",
        finished="",
    ).write(paths.shard_run(shard))


def _write_plain(path: Path, vectors: np.ndarray) -> None:
    np.save(path, vectors)
    fsync(path)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    fsync(target)
