"""What a model that was just loaded says of a few proteins, beside what fair-esm says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from packedesm.device.token_budget import Workload
from packedesm.embedding.first_check import FirstCheck, first_check
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.errors import Fault, UserError
from packedesm.esm2.checkpoints import reading_weights
from packedesm.esm2.proteins import PROTEINS
from packedesm.esm2.registry import Checkpoint
from packedesm.notebook.request import CallKeys, call_options, resolved
from packedesm.reference.comparison import USUAL_COSINE, Limits
from packedesm.reference.memory import available_bytes
from packedesm.reference.model import Reference
from packedesm.reference.vectors import Protein

if TYPE_CHECKING:
    from packedesm.notebook.model import EmbeddingModel

logger = logging.getLogger(__name__)

_COPIES = 2  # of the weights in float32 that fair-esm holds while it loads them


def first_that_passes(
    load: Callable[[str, str], EmbeddingModel], formats: Sequence[str], reason: str
) -> EmbeddingModel:
    """Return a model in the first number format that passes.

    Parameters
    ----------
    load
        Gives the model in a number format, chosen for a reason.
    formats
        To try, the fastest first.
    reason
        For the first.

    Raises
    ------
    UserError
        If the one format that was named does not pass, and it is not float32.
    Fault
        If float32 does not.
    """
    proteins: list[Protein] | None = None
    missed: list[str] = []
    for dtype in formats:
        try:
            model = load(dtype, "; ".join([reason, *missed]))
        except UserError as error:  # a device that has no such format
            if dtype == formats[0]:
                raise
            missed.append(str(error))
            continue
        if proteins is None:
            proteins = _expected(model.checkpoint)
        if not proteins:
            return model
        check = compared(model, proteins)
        logger.info("first check of %s: %s", dtype, check.in_words())
        if check.flawless or (check.passed and dtype == formats[-1]):
            return model
        missed.append(f"{dtype} misses the first check ({check.in_words()})")
        if dtype != formats[-1]:
            logger.warning("dtype auto: %s", missed[-1])
    said = f"{model.checkpoint.model}: {missed[-1]} against fair-esm"
    if dtype != "float32":
        raise UserError(f"{said}; these weights do not bear {dtype}: say dtype float32, or auto")
    raise Fault(f"{said}: {model.device} computes wrong here; see `packedesm doctor`")


def compared(model: EmbeddingModel, proteins: Sequence[Protein]) -> FirstCheck:
    """Return how far the model's mean vectors are from those of fair-esm."""
    from packedesm.notebook.run import on

    found = resolved("embed", {}, CallKeys)
    _, options = call_options(found, model.geometry.layers)
    tokens = sum(protein.length + 2 for protein in proteins)
    plan = model.plan(options, Workload(tokens, len(proteins), lambda _budget: []))
    limits = Limits.of(USUAL_COSINE, "auto", (plan.dtype, plan.output_dtype))
    with on(model.device):
        runner = AsyncInferenceRunner(model.computing(plan), plan, model.device)
        return first_check(runner, proteins, options.length, limits)


def _expected(checkpoint: Checkpoint) -> list[Protein]:
    """Return what fair-esm says; nothing where memory does not hold it."""
    needed = checkpoint.geometry.parameters * 4 * _COPIES
    if needed > available_bytes():
        logger.warning(
            "%s is not compared with fair-esm, which takes %.1f GB of memory more than there are",
            *(checkpoint.model, needed / 1e9),
        )
        return []
    with reading_weights(checkpoint) as path:
        reference = Reference(path, checkpoint.base)
        return [
            Protein(
                row=row,
                id=name,
                length=len(sequence),
                embedded_length=len(sequence),
                sequence=sequence,
                vectors={"mean": reference.residues(sequence).astype(np.float64).mean(axis=0)},
            )
            for row, (name, sequence) in enumerate(PROTEINS.items())
        ]
