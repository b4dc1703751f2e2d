"""``run.json``: what an embedding job tells of itself to the steps after it; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from packedesm.errors import Fault
from packedesm.esm2.registry import Checkpoint
from packedesm.files import read_record, write_record
from packedesm.options import EmbedOptions, EmbedPlan


@dataclass(frozen=True)
class Seconds:
    """What a job spent its time on, all attempts together."""

    setup: float  # until the first pack, of every attempt; without `starting`
    embedding: float  # from then to the last pack
    forward: float  # forward passes and pooling, on the device
    waiting: float  # for the loader
    total: float
    masked: float = 0.0  # of `embedding`, what packs of masked copies took
    # Of the last attempt: Python and its libraries, if it is the first of its process.
    starting: float = 0.0
    checking: float = 0.0  # of its setup, the first check
    peak: float = 0.0  # of its setup, the rate of matrix products


@dataclass(frozen=True)
class JobFacts:
    """What a job knows of itself before it writes its arrays."""

    shard: int
    records: int
    residues: int  # of the records that went through the model
    tokens: int  # of those
    masked_passes: int  # as many as residues that were masked, each in a pass of its own
    masked_tokens: int  # of all masked passes
    checkpoint: Checkpoint
    options: EmbedOptions  # as asked for
    plan: EmbedPlan  # as resolved
    first_check: dict[str, Any] | None  # see `packedesm.embedding.first_check`; None if none asked
    fasta_sha256: str  # of the shard
    packs: int
    fill: float  # tokens over token budgets, at most 1
    flops: float  # of all forward passes
    matmul_peak_flops: float | None  # per second, of the model's matrix products on the device
    matmul_peak_range: tuple[float, float] | None  # the slowest and the fastest that were measured
    matmul_peak_reason: str | None  # why that is not known
    precision: dict[str, bool]  # see `packedesm.device.precision.fix_precision`
    device: dict[str, Any]  # see `packedesm.device.hardware.Device.describe`
    gpu: dict[str, Any]  # see `packedesm.device.gpu_monitor.GPUMonitor.summary`
    host: str
    versions: dict[str, str]


@dataclass(frozen=True)
class ShardRun(JobFacts):
    """What one embedding job recorded about itself."""

    fingerprint: str  # of all that decides the vectors
    arrays_sha256: dict[str, str]  # of the shard's arrays, by name
    packs_sha256: str  # of packs.tsv
    float32_rows: tuple[int, ...]  # rows that half precision could not embed
    retried_packs: int  # that were computed twice since memory was short
    replanned_packs: int  # that were planned smaller since memory was short
    restarts: int
    recomputed_packs: int
    discarded_commits: int
    seconds: Seconds
    started: str  # time of day, UTC, ISO 8601
    finished: str
    record_sha256: str = field(default="", compare=False)  # of run.json itself, if it was read

    @classmethod
    def read(cls, path: Path) -> ShardRun:
        """Read ``run.json``.

        Raises
        ------
        Fault
            If the file is not what `write` wrote.
        """
        try:
            return cls._from_json(read_record(path))
        except (KeyError, TypeError):
            raise Fault(
                f"{path}: is not the record of an embedding job; delete it and run again"
            ) from None

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> ShardRun:
        values = {item.name: content[item.name] for item in fields(cls)}
        return cls(
            **values
            | {
                "checkpoint": Checkpoint.from_json(values["checkpoint"]),
                "options": EmbedOptions.of(values["options"]),
                "plan": EmbedPlan.from_json(values["plan"]),
                "seconds": Seconds(**values["seconds"]),
                "float32_rows": tuple(values["float32_rows"]),
                "matmul_peak_range": _pair(values["matmul_peak_range"]),
            }
        )

    def write(self, path: Path) -> None:
        """Write ``run.json``, atomically."""
        nested = {
            "checkpoint": self.checkpoint.as_json(),
            "options": self.options.as_config(),
            "plan": self.plan.as_json(),
            "seconds": asdict(self.seconds),
        }
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        write_record(path, values | nested)


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
