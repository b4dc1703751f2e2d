"""What a finished embedding job leaves: the shard's arrays, ``packs.tsv`` and ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from packedesm.config import EMBED_OPTIONS, pick
from packedesm.device.hardware import device_kind
from packedesm.embedding.resume import ShardState, now
from packedesm.embedding.runner import PackStatistics
from packedesm.files import file_digest, read_json, write_json
from packedesm.packing.dataset import SequenceDataset
from packedesm.paths import Layout
from packedesm.report.tables import write_table
from packedesm.results.merge import shard_writer
from packedesm.sequences.shards import check_written
from packedesm.versions import versions


def publish(
    layout: Layout,
    shard: int,
    dataset: SequenceDataset,
    state: ShardState,
    record: dict[str, Any],
) -> dict[str, Any]:
    """Write arrays, ``packs.tsv`` and, last, ``run.json``; delete the state."""
    outputs = record["outputs"]
    arrays = (dataset.embedded_lengths, record["model"]["width"], outputs, record["output_dtype"])
    float32 = []
    with shard_writer(layout, shard, *arrays) as writer:
        for pack in state.finished():
            writer.write(pack)
            float32 += dataset.rows[pack.float32_rows].tolist()
        state.check_owner()
    statistics = list(state.statistics().values())
    columns = [field.name for field in fields(PackStatistics)]
    write_table(layout.shard_packs(shard), columns, map(asdict, statistics))
    history = state.history()
    record = record | {
        "fingerprint": state.fingerprint,
        "arrays": {name: file_digest(layout.shard_vectors(shard, name)) for name in outputs},
        "seconds": _seconds(statistics, history.pop("setup"), history.pop("total")),
        **history,
        "token_limit": state.token_limit(),
        "split_packs": sum(pack.pieces > 1 for pack in statistics),
        "float32_rows": sorted(float32),
        "finished": now(),
    }
    write_json(layout.shard_run(shard), record)
    state.remove()
    return record


def finished(
    layout: Layout, shard: int, checkpoint: Mapping[str, Any], options: Mapping[str, Any]
) -> bool:
    """Tell whether `embed_shard` need not run again: its files are whole, and of this very job.

    Parameters as those of `embed_shard`; any device of the same kind will do.
    """
    try:
        run = read_json(layout.shard_run(shard))
    except (FileNotFoundError, ValueError):
        return False
    expected = {
        "fasta_sha256": check_written(layout, layout.shard_fasta(shard)),
        "model": dict(checkpoint),
        "options": pick(options, EMBED_OPTIONS),
        "versions": versions(),
    }
    files = {name: layout.shard_vectors(shard, name) for name in run["arrays"]}
    return (
        all(run.get(name) == value for name, value in expected.items())
        and run["device"]["kind"] == device_kind()
        and all(path.exists() for path in files.values())
        and {name: file_digest(path) for name, path in files.items()} == run["arrays"]
    )


def _seconds(statistics: list[PackStatistics], setup: float, total: float) -> dict[str, float]:
    return {
        "setup": setup,
        "embedding": max((pack.finished_seconds for pack in statistics), default=0.0),
        "forward": sum(pack.forward_seconds for pack in statistics),
        "waiting": sum(pack.wait_seconds for pack in statistics),
        "total": total,
    }
