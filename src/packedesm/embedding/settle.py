"""What decides the vectors of a shard: settled by its first attempt, kept by those that follow."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from packedesm.device.auto import load, load_fitting, unfit_reason
from packedesm.device.hardware import Device
from packedesm.device.token_budget import Workload
from packedesm.embedding.resume import Settled, ShardState
from packedesm.errors import Fault
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Checkpoint
from packedesm.options import EmbedOptions, EmbedPlan
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import WINDOW, plan_packs
from packedesm.versions import versions

TRIALS = 3  # packs that a token budget is tried on


def begin(
    state: ShardState,
    fasta_sha256: str,
    checkpoint: Checkpoint,
    options: EmbedOptions,
    device: Device,
    dataset: SequenceDataset,
) -> tuple[EmbedPlan, PackedESM2]:
    """Return the plan and the model, as earlier attempts have settled it or by asking the device.

    Raises Fault if the device cannot go on with what is settled; nothing is touched then.
    """
    place = device.torch_device
    asked = _asked(fasta_sha256, checkpoint, options)
    settled = state.settled(asked)
    if settled is None:
        plan, model = load(checkpoint, options, place, _workload(dataset))
        settled = Settled(plan, place.type, device.name)
    else:
        plan = settled.plan
        reason = unfit_reason(plan, settled.kind, checkpoint.geometry, place)
        if reason is not None:
            raise Fault(
                f"{state.folder}: what is finished was computed on {settled.name}, in {plan.dtype} "
                f"with attention {plan.attention}; {device.name} cannot go on with it ({reason}): "
                "run again on such a device, or start over with --force or without that folder"
            )
        model = load_fitting(checkpoint, plan.dtype, plan.kernels, place)
    state.adopt(asked, settled)
    return plan, model


def _workload(dataset: SequenceDataset) -> Workload:
    sequences = int(dataset.policy.counts(dataset.lengths).sum())
    return Workload(int(dataset.tokens.sum()), sequences, partial(trial_packs, dataset))


def trial_packs(dataset: SequenceDataset, token_budget: int) -> list[list[int]]:
    """Return the tokens of every sequence of some packs of the shard, evenly spaced in its plan.

    The plan goes from the longest records to the shortest, so they stand for all of it.
    """
    packs = plan_packs(dataset.tokens[:WINDOW], token_budget)
    chosen = np.unique(np.arange(1, 2 * TRIALS, 2) * len(packs) // (2 * TRIALS))
    lengths = [dataset.lengths[packs[pack]] for pack in chosen.tolist()]
    return [dataset.policy.sequence_tokens(of_pack).tolist() for of_pack in lengths]


def _asked(fasta_sha256: str, checkpoint: Checkpoint, options: EmbedOptions) -> dict[str, Any]:
    """Return what a shard's vectors are asked for as and made from, the device apart."""
    installed = versions()
    return {
        "fasta_sha256": fasta_sha256,  # each record is checked when read
        "checkpoint_sha256": checkpoint.sha256,
        **options.as_config(),
        **{name: installed[name] for name in ("packedesm", "torch")},
    }
