"""Typed options and records for tests: the defaults of the schema, and what a test says."""

from dataclasses import fields, replace
from typing import Any, TypeVar

from packedesm.config import resolve, with_arrays
from packedesm.embedding.record import Seconds, ShardRun
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import MODELS, Checkpoint
from packedesm.options import EmbedOptions, EmbedPlan, LengthPolicy, ShardOptions

Options = TypeVar("Options")


def options(kind: type[Options], **config: Any) -> Options:
    """Return the options of a configuration that says nothing but `config`."""
    arrays = config.pop("arrays", None)
    resolved = with_arrays(resolve({"fasta": "in.fasta", **config}), depth=None)
    return kind.of(resolved if arrays is None else {**resolved, "arrays": list(arrays)})


def policy(**config: Any) -> LengthPolicy:
    return options(LengthPolicy, **config)


def shard_options(**config: Any) -> ShardOptions:
    return options(ShardOptions, **config)


def embed_plan(**changes: Any) -> EmbedPlan:
    resolved = ("dtype", "output_dtype", "attention", "kernels", "token_budget")
    reasons = dict.fromkeys(resolved, "for a test")
    plan = EmbedPlan("float32", "float32", ("mean",), "sdpa", "torch", 64, reasons)
    return replace(plan, **changes)


def checkpoint(name: str = "esm2_t6_8M_UR50D", **changes: Any) -> Checkpoint:
    made = Checkpoint(
        model=name,
        path=f"/checkpoints/{name}.pt",
        format="fair-esm",
        geometry=MODELS[name],
        bytes=30_000_000,
        sha256="0" * 64,
        untrained=False,
        demo=False,
        digest_checked=True,
    )
    return replace(made, **changes)


def geometry(width: int) -> Geometry:
    return Geometry(layers=1, width=width, heads=1)


def shard_run(**changes: Any) -> ShardRun:
    """Return the record of a job on one record; a change to a part of `plan` is named as such."""
    plan = {field.name for field in fields(EmbedPlan)}
    in_plan = {name: changes.pop(name) for name in plan & changes.keys()}
    run = ShardRun(
        shard=0,
        records=1,
        residues=3,
        tokens=5,
        masked_passes=0,
        masked_tokens=0,
        checkpoint=checkpoint(),
        options=options(EmbedOptions),
        plan=embed_plan(),
        first_check=None,
        fasta_sha256="0" * 64,
        packs=1,
        fill=0.5,
        flops=1e9,
        matmul_peak_flops=1e10,
        matmul_peak_range=(1e10, 1e10),
        matmul_peak_reason=None,
        precision={"tf32": False, "float16_sums": False, "bfloat16_sums": False},
        device={
            "kind": "cpu",
            "name": "a processor",
            "instructions": "AVX2",
            "uuid": None,
            "memory_bytes": 8 << 30,
            "threads": 2,
        },
        gpu={
            "available": False,
            "reason": "the job ran on a CPU",
            "samples": [],
            "energy_j": None,
        },
        host="laptop",
        versions={"python": "3.11.4", "packedesm": "0.1.0"},
        fingerprint="0" * 64,
        arrays_sha256={},
        packs_sha256="",
        float32_rows=(),
        retried_packs=0,
        replanned_packs=0,
        restarts=0,
        recomputed_packs=0,
        discarded_commits=0,
        seconds=Seconds(setup=1.0, embedding=1.0, forward=0.8, waiting=0.2, total=2.0),
        started="2025-01-01T00:00:00+00:00",
        finished="2025-01-01T00:00:02+00:00",
    )
    run = replace(run, **changes)
    return replace(run, plan=replace(run.plan, **in_plan))
