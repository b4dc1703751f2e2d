"""How full the packs of a run were, and the padding that they avoided."""

from typing import Any

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.packing.copies import masked_tokens
from packedesm.packing.packer import padded_tokens
from packedesm.paths import Paths
from packedesm.sequences.faidx import read_faidx
from packedesm.sequences.summary import reading_sharded

FULL = 0.95  # of its token budget: then a pack counts as full


def packing_of(
    paths: Paths, run: ShardRun, packs: dict[str, np.ndarray], sharding: dict[str, Any]
) -> dict[str, Any]:
    """Return what the packs of a shard held, and what padding would have computed.

    Packs of masked copies are told of apart, under names that begin with ``masked_``.

    Raises
    ------
    RuntimeError
        If they do not hold exactly the tokens of its records and of their copies.
    """
    shard, budget = run.shard, run.plan.token_budget
    with reading_sharded(paths, paths.shard_fai(shard), summary=sharding):
        lengths = read_faidx(paths.shard_fai(shard)).lengths
    sequences = run.options.length.sequence_tokens(lengths)
    masked = packs["masked"] > 0
    own, copies = (_packed({k: v[kind] for k, v in packs.items()}) for kind in (~masked, masked))
    # Where only what takes masked passes is asked for, no record itself goes through the model.
    sequences = sequences[: None if run.tokens else 0]
    expected = {"records": (own, sequences.sum()), "masked copies": (copies, _copied(run, lengths))}
    for what, (found, tokens) in expected.items():
        if found["tokens"] != tokens:
            raise RuntimeError(
                f"shard {shard}: its packs hold {found['tokens']} tokens, its {what} {tokens}"
            )
    row = {
        "shard": shard,
        "records": run.records,
        **own,
        "token_budget": budget,
        **{f"masked_{name}": value for name, value in copies.items()},
        "padded_tokens_arrival": padded_tokens(sequences, budget, length_sorted=False),
        "padded_tokens_sorted": padded_tokens(sequences, budget, length_sorted=True),
    }
    return _with_fractions(row)


def _packed(packs: dict[str, np.ndarray]) -> dict[str, int]:
    """Return what packs of one kind hold."""
    return {
        "packs": len(packs["tokens"]),
        "full_packs": int((packs["fill"] >= FULL).sum()),
        "tokens": int(packs["tokens"].sum()),
        # A record longer than the budget has a pack of its own, and that pack is full.
        "capacity": int(np.maximum(packs["tokens"], packs["token_budget"]).sum()),
    }


def _copied(run: ShardRun, lengths: np.ndarray) -> int:
    """Return the tokens of all masked copies of records of these lengths, if there are any."""
    return masked_tokens(run.options.length, lengths) if run.masked_passes else 0


def packing_of_all(rows: list[dict]) -> dict[str, Any]:
    """Return the sum of what the shards' packs held."""
    summed = (
        "records",
        "packs",
        "full_packs",
        "tokens",
        "capacity",
        "masked_packs",
        "masked_full_packs",
        "masked_tokens",
        "masked_capacity",
        "padded_tokens_arrival",
        "padded_tokens_sorted",
    )
    total = {name: sum(row[name] for row in rows) for name in summed}
    budgets = {row["token_budget"] for row in rows}
    budget = budgets.pop() if len(budgets) == 1 else None
    return _with_fractions({"shard": "all", "token_budget": budget, **total})


def _with_fractions(row: dict[str, Any]) -> dict[str, Any]:
    fill = ratio(row["tokens"], row["capacity"])
    masked_fill = ratio(row["masked_tokens"], row["masked_capacity"])
    for found in (fill, masked_fill):
        if found is not None and found > 1:
            raise RuntimeError(f"shard {row['shard']}: fill {found} exceeds 1")
    return {
        **row,
        "fill": fill,
        "masked_fill": masked_fill,
        "padding_avoided_arrival": _avoided(row["tokens"], row["padded_tokens_arrival"]),
        "padding_avoided_sorted": _avoided(row["tokens"], row["padded_tokens_sorted"]),
    }


def _avoided(tokens: int, padded: int) -> float | None:
    """Return the fraction of a padding implementation's tokens that packing does not compute."""
    computed = ratio(tokens, padded)
    return None if computed is None else 1 - computed


def ratio(part: float | None, whole: float | None) -> float | None:
    """Return a quotient, None where one of both is not known or there is nothing to divide by."""
    return part / whole if part is not None and whole else None
