"""How a job begins: what ``auto`` comes to, the model, and proof that both are right here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from packedesm.device.auto import load, load_fitting, resolve_dtype, unfit_reason
from packedesm.device.hardware import Device
from packedesm.device.token_budget import Workload
from packedesm.embedding.choice import Choice, RunChoice
from packedesm.embedding.first_check import FirstCheck, first_check
from packedesm.embedding.resume import Settled, ShardState
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.errors import Fault, UserError
from packedesm.esm2.int8 import INT8
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Checkpoint
from packedesm.options import EmbedOptions, EmbedPlan, JobOptions
from packedesm.outputs import heads_of
from packedesm.paths import Paths
from packedesm.reference.comparison import USUAL_COSINE, Limits
from packedesm.reference.vectors import Protein
from packedesm.versions import versions

logger = logging.getLogger(__name__)

# Number formats of the computation, the fastest first.
_LADDER = ("float16", "bfloat16", "float32")


class Begun(NamedTuple):
    """A job that may start: everything is resolved, loaded and checked."""

    plan: EmbedPlan
    runner: AsyncInferenceRunner
    check: FirstCheck | None  # None where nothing is verified


@dataclass(frozen=True)
class Beginning:
    """What a job has before it knows its plan.

    Parameters
    ----------
    paths, checkpoint, options, job
        As `packedesm.embedding.job.embed_shard` takes them.
    device
        What it runs on.
    proteins
        Of the sample, with their reference; none where nothing is verified.
    workload
        What the token budget is to be the fastest for.
    """

    paths: Paths
    checkpoint: Checkpoint
    options: EmbedOptions
    job: JobOptions
    device: Device
    proteins: Sequence[Protein]
    workload: Workload

    def begin(self, state: ShardState, fasta_sha256: str, sharding_sha256: str) -> Begun:
        """Resolve, load and check, and fix in `state` what holds for all attempts.

        Parameters
        ----------
        fasta_sha256, sharding_sha256
            Digests of the shard's FASTA, and of the record of all shards.

        Raises
        ------
        UserError
            If the options do not fit the device, or a number format does not carry these weights.
        Fault
            If the device cannot go on with what is settled, or computes wrong; nothing is touched.
        """
        asked = self._asked()
        run_choice = RunChoice(self.paths.choices, {**asked, "sharding": sharding_sha256})
        asked_of_shard = {"fasta_sha256": fasta_sha256, **asked}  # each record is checked when read
        settled = state.settled(asked_of_shard)
        begun = self._decided(run_choice) if settled is None else self._resumed(state, settled)
        if begun.check is not None:
            state.timed["checking"] = begun.check.seconds
            logger.info(
                "first check: %d vectors of %d proteins against fair-esm: %s",
                *(begun.check.compared, len(self.proteins), begun.check.in_words()),
            )
        here = Settled(begun.plan, self.device.torch_device.type, self.device.name)
        state.adopt(asked_of_shard, settled or here)
        return begun

    def _asked(self) -> dict[str, Any]:
        """Return what vectors are asked for as and made from, the device and the shard apart."""
        installed = versions()
        return {
            "checkpoint_sha256": self.checkpoint.sha256,
            **self.options.as_config(),
            **{name: installed[name] for name in ("packedesm", "torch")},
        }

    def _resumed(self, state: ShardState, settled: Settled) -> Begun:
        plan, place = settled.plan, self.device.torch_device
        reason = unfit_reason(plan, settled.kind, self.checkpoint.geometry, place)
        if reason is not None:
            raise Fault(
                f"{state.folder}: what is finished was computed on {settled.name}, in {plan.dtype} "
                f"with attention {plan.attention}; {self.device.name} cannot go on with it "
                f"({reason}): run again on such a device, or start over with --force or without "
                "that folder"
            )
        logger.info("going on as it was begun on %s", settled.name)
        heads = heads_of(plan.arrays)
        asked = (self.checkpoint, plan.dtype, plan.kernels, place, heads)
        model = load_fitting(*asked, float_products=plan.float_products)
        return self._right(self._checked(plan, model))

    def _decided(self, run_choice: RunChoice) -> Begun:
        """Resolve what is ``auto``; the number format as the run's first job has chosen it."""
        if self.options.dtype == INT8:
            return self._right(self._in_int8(run_choice))
        if self.options.dtype != "auto":
            return self._right(self._tried(self.options.dtype))
        chosen, kind = run_choice.read(), self.device.torch_device.type
        if chosen is not None and chosen.kind != kind and not self.paths.finished_work():
            # Another kind of machine has begun, and nothing came of it.
            run_choice.forget()
            chosen = None
        if chosen is not None:
            return self._adopted(chosen)
        begun = self._first_that_passes()
        own = Choice(begun.plan.dtype, begun.plan.reasons["dtype"], kind, self.device.name)
        holds = run_choice.say(own)
        if holds.dtype == own.dtype:
            return begun
        begun.runner.release()
        return self._adopted(holds)

    def _in_int8(self, run_choice: RunChoice) -> Begun:
        """Take the products that the run's first job has chosen, or choose them."""
        chosen = run_choice.read()
        begun = self._tried(INT8, float_products=chosen.float_products if chosen else None)
        place, reasons = self.device.torch_device.type, begun.plan.reasons["dtype"]
        own = Choice(INT8, reasons, place, self.device.name, begun.plan.float_products)
        holds = run_choice.say(own)
        if holds.float_products == own.float_products:
            return begun
        begun.runner.release()
        return self._tried(INT8, float_products=holds.float_products)

    def _first_that_passes(self) -> Begun:
        """Try number formats from the fastest on; on a CPU there is one."""
        fastest, reason = resolve_dtype("auto", self.device.torch_device)
        missed: list[str] = []
        for dtype in _LADDER[_LADDER.index(fastest) :]:
            try:
                begun = self._tried(dtype)
            except UserError as error:  # a device that has no such format, or no such attention
                if dtype == fastest:
                    raise
                missed.append(str(error))
                continue
            if begun.check is None or begun.check.flawless or dtype == "float32":
                break
            missed.append(f"{dtype} misses the first check ({begun.check.in_words()})")
            logger.warning("dtype auto: %s", missed[-1])
            begun.runner.release()
        reason = f"{reason}: {'; '.join(missed)}" if missed else reason
        return _because(self._right(begun), reason)

    def _adopted(self, choice: Choice) -> Begun:
        """Take the number format that another job of the run has chosen; Fault if that fails."""
        remedy = (
            "the shards of a run have one number format: run on such a device, or name a dtype "
            "that all have, which starts over"
        )
        fastest, reason = resolve_dtype("auto", self.device.torch_device)
        if _LADDER.index(choice.dtype) < _LADDER.index(fastest):
            raise Fault(
                f"other jobs of this run compute in {choice.in_words()}; dtype auto is {fastest} "
                f"on {self.device.name}; {remedy}"
            )
        try:
            begun = self._tried(choice.dtype)
        except UserError as error:
            raise Fault(
                f"other jobs of this run compute in {choice.in_words()}; {error}; {remedy}"
            ) from None
        if begun.check is not None and not begun.check.passed:
            raise Fault(
                f"other jobs of this run compute in {choice.in_words()}; on {self.device.name} its "
                f"first check fails: {begun.check.in_words()}; {remedy}"
            )
        if choice.dtype != fastest:
            reason = f"as the first job of this run has chosen: {choice.reason}"
        return _because(begun, reason)

    def _tried(
        self,
        dtype: str,
        attention: str | None = None,
        float_products: Collection[str] | None = None,
    ) -> Begun:
        attention = attention or self.options.attention
        options = replace(self.options, dtype=dtype, attention=attention)
        place = self.device.torch_device
        plan, model = load(self.checkpoint, options, place, self.workload, float_products)
        return self._checked(plan, model)

    def _checked(self, plan: EmbedPlan, model: PackedESM2) -> Begun:
        runner = AsyncInferenceRunner(model, plan, self.device.torch_device)
        if not self.proteins:
            return Begun(plan, runner, None)
        limits = self._limits(self.job.max_relative_l2, plan)
        return Begun(plan, runner, first_check(runner, self.proteins, self.options.length, limits))

    def _limits(self, max_relative_l2: float | str, plan: EmbedPlan) -> Limits:
        return Limits.of(self.job.min_cosine, max_relative_l2, (plan.dtype, plan.output_dtype))

    def _right(self, begun: Begun) -> Begun:
        """Return what has begun, or raise what its first check says of it."""
        if begun.check is not None and not begun.check.passed:
            raise self._wrong(begun, begun.check)
        return begun

    def _wrong(self, begun: Begun, check: FirstCheck) -> UserError | Fault:
        """Return what to raise after a check that failed: it says what would help, as was tried."""
        plan, name = begun.plan, self.device.name
        begun.runner.release()
        said = f"in {plan.dtype} on {name} the first check fails: {check.in_words()}"
        if not all(np.isfinite(v).all() for p in self.proteins for v in p.vectors.values()):
            return UserError(
                f"{said}; fair-esm's own vectors are not finite either: the weights hold NaN or "
                "infinity, or numbers that are too large; take another copy or another model"
            )
        usual = Limits.of(USUAL_COSINE, "auto", (plan.dtype, plan.output_dtype))
        if check.worst.within(usual):
            return UserError(
                f"{said}; rounding in {plan.dtype} costs as much: allow it in verify.min_cosine "
                "and verify.max_relative_l2"
            )
        after = _LADDER.index("float16" if plan.dtype == INT8 else plan.dtype) + 1
        for dtype in _LADDER[after:]:
            if self._passes(dtype):
                return UserError(
                    f"{said}; these weights do not bear {plan.dtype}, {dtype} passes: say dtype "
                    f"{dtype} (what was finished in {plan.dtype} is computed again)"
                )
        if plan.attention != "sdpa" and self._passes("float32", attention="sdpa"):
            return Fault(
                f"{said}; with attention sdpa it passes, so {plan.attention} computes wrong on "
                "this machine: say attention sdpa, and please report it"
            )
        cpu = self.device.torch_device.type == "cpu"
        other = "machine" if cpu else "device, or say device cpu"
        return Fault(
            f"{said}, and in every other way that was tried: {name} computes wrong, or is damaged; "
            f"run on another {other}, and see `packedesm doctor`"
        )

    def _passes(self, dtype: str, attention: str | None = None) -> bool:
        """Try another way; one that is not possible here does not pass."""
        try:
            begun = self._tried(dtype, attention)
        except (UserError, Fault) as error:
            logger.info("%s was not tried: %s", dtype, error)
            return False
        begun.runner.release()
        return begun.check is not None and begun.check.passed and bool(begun.check.compared)


def _because(begun: Begun, reason: str) -> Begun:
    reasons = {**begun.plan.reasons, "dtype": reason}
    begun.runner.plan = plan = replace(begun.plan, reasons=reasons)
    return begun._replace(plan=plan)
