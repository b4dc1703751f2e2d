"""Embed all packs of a shard, by slower ways where the fast one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch

from packedesm.device.memory import if_it_fits
from packedesm.embedding.pack import FinishedPack, PackStatistics
from packedesm.embedding.replan import PackPlan, Replan
from packedesm.embedding.runner import AsyncInferenceRunner, PackTooLarge, Sink
from packedesm.embedding.writer import Writer
from packedesm.errors import Fault, plural
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedPlan
from packedesm.outputs import Array

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

# Embeds packs of these numbers, all planned with the same budget, and hands them to a sink.
Embed = Callable[[AsyncInferenceRunner, Sequence[int], Sink], None]


@dataclass(frozen=True)
class Means:
    """What a `Fallback` needs and is given."""

    embed: Embed
    tokens: np.ndarray  # int (N + C,), of each item
    load_float32: Callable[[torch.device], PackedESM2]  # the model in float32, on a device
    name: Callable[[int], str]  # what to call an item
    remember: Callable[[Sequence[Replan]], None]  # keeps a plan for the attempts to come


class Fallback:
    """Packs as planned, then smaller ones, float32, or the CPU, for what does not go otherwise.

    If memory does not hold a pack at the second try either, all packs that are left are planned
    anew with half the budget. What took the memory may be gone later: after `PATIENCE` packs
    without trouble a budget twice as large is tried, up to the job's; each failure doubles them.

    A record whose vectors are not finite in half precision, or that does not fit into the GPU's
    memory alone, is deferred. At the end deferred records get packs of their own, in float32, once
    the first model has left the device; if that does not fit, on the CPU.

    Parameters
    ----------
    packs
        The plan of the shard; it is planned on here.
    sink
        Called with each finished pack. Runs in another thread.
    done
        Numbers of the packs that earlier attempts have finished.
    deferred
        The items that they have deferred.
    """

    def __init__(
        self,
        means: Means,
        packs: PackPlan,
        sink: Sink,
        done: Iterable[int] = (),
        deferred: Iterable[int] = (),
    ) -> None:
        self.packs = packs
        self.done = set(done)
        self._deferred = set(deferred)
        self._means = means
        self._sink = sink

    def run(self, runner: AsyncInferenceRunner) -> None:
        """Embed all packs that are not done; the runner lets go of its model before float32.

        Raises
        ------
        Fault
            If the vectors of a record are not finite in float32, or it or the model in float32
            does not fit into the memory of the CPU; names the record.
        """
        while todo := self.packs.todo(self.done, float32=False):
            patience = self.packs.patience
            part = todo[:patience]
            too_large = self._embed(runner, part, float32=False)
            if too_large is not None:
                self._defer(too_large, runner)
            elif patience is not None and self.done.issuperset(part):
                self._grow()
        new = self._deferred - self.packs.float32_records
        if new:
            # Numbers take twice the room.
            self._replan([], max(1, self.packs.token_budget // 2), float32=True, records=new)
        if todo := self.packs.todo(self.done, float32=True):
            logger.warning("%s left for float32", plural(len(todo), "pack"))
            runner.release()
            self._in_float32(runner)

    def _grow(self) -> None:
        if left := self.packs.todo(self.done, float32=False):
            budget = self.packs.larger()
            logger.info("memory was not short of late: at most %d tokens go at once", budget)
            self._replan(left, budget)

    def _in_float32(self, before: AsyncInferenceRunner) -> None:
        """Embed the packs in float32; `before` has let go of its model."""
        if before.device != CPU:
            if before.plan.dtype != "float32":
                self._in_float32_on_gpu(before)
            if not self.packs.todo(self.done, float32=True):
                return
            logger.warning("float32 does not fit into the GPU's memory; the CPU does the rest")
        runner = if_it_fits(lambda: self._float32_runner(before.plan, CPU))
        if runner is None:
            place = int(self.packs[self.packs.todo(self.done, float32=True)[0]][0])
            raise Fault(
                f"{self._means.name(place)}: needs the model in float32, which does not fit into "
                "the CPU's memory; use a machine with more"
            )
        while todo := self.packs.todo(self.done, float32=True):
            too_large = self._embed(runner, todo, float32=True)
            if too_large is not None:
                self._fail(too_large)

    def _in_float32_on_gpu(self, before: AsyncInferenceRunner) -> None:
        """Embed what the GPU holds in float32."""
        runner = if_it_fits(lambda: self._float32_runner(before.plan, before.device))
        if runner is None:
            return
        alone: set[int] = set()  # packs of one record that it does not hold
        while todo := self.packs.todo(self.done | alone, float32=True):
            too_large = self._embed(runner, todo, float32=True)
            if too_large is not None:
                alone.add(too_large.number)
        runner.release()

    def _float32_runner(self, plan: EmbedPlan, device: torch.device) -> AsyncInferenceRunner:
        plan = replace(plan, dtype="float32", attention="sdpa", kernels="torch")
        return AsyncInferenceRunner(self._means.load_float32(device), plan, device)

    def _replan(self, packs: list[int], token_budget: int, **further: Any) -> None:
        self.packs.replan(packs, token_budget, **further)
        self._means.remember(self.packs.replans)

    def _embed(
        self, runner: AsyncInferenceRunner, todo: list[int], *, float32: bool
    ) -> PackTooLarge | None:
        """Embed packs, up to one that memory does not hold.

        If it has several records, all that are left are planned anew; one of a single record is
        returned.
        """
        too_large = self._first_too_large(runner, todo, float32=float32)
        if too_large is None or len(too_large.rows) == 1:
            return too_large
        left = self.packs.todo(self.done, float32=float32)
        budget = self.packs.budget(left[-1])
        while budget >= too_large.tokens:
            budget //= 2
        logger.warning(
            "out of memory with %d tokens again: %s left, planned anew with at most %d tokens",
            *(too_large.tokens, plural(len(left), "pack"), budget),
        )
        self._replan(left, budget, float32=float32)
        return None

    def _first_too_large(
        self, runner: AsyncInferenceRunner, todo: list[int], *, float32: bool
    ) -> PackTooLarge | None:
        def finish(pack: FinishedPack) -> None:
            self._finish(pack, last=float32 or runner.plan.dtype == "float32", again=float32)

        budgets = {number: self.packs.budget(number) for number in todo}
        for budget in dict.fromkeys(budgets.values()):
            part = [number for number in todo if budgets[number] == budget]
            try:
                self._means.embed(runner, part, finish)
            except PackTooLarge as error:
                return error.with_traceback(None)
        return None

    def _finish(self, pack: FinishedPack, *, last: bool, again: bool) -> None:
        """Pass a pack on, without the vectors that float32 is to give.

        Parameters
        ----------
        last
            No slower way is left for what is not finite.
        again
            These are the records that were deferred.
        """
        if len(pack.deferred) and (last or not self._deferred):  # once, not for every pack
            self._say_not_finite(pack.deferred, last=last)
        statistics = pack.statistics
        if again:
            pack = replace(pack, statistics=replace(statistics, float32_records=len(pack.rows)))
        else:
            # A pack that is computed again, for a commit was lost, may be finite this time.
            planned = np.isin(pack.rows, list(self.packs.float32_records))
            pack = pack.defer(np.flatnonzero(planned), self._means.tokens[pack.rows])
        self._sink(pack)
        self._deferred.update(pack.deferred.tolist())
        self.done.add(statistics.pack)

    def _say_not_finite(self, rows: np.ndarray, *, last: bool) -> None:
        name = self._means.name(int(rows[0]))
        if last:
            raise Fault(
                f"{name}: its vectors hold NaN or infinity, in float32 too; try "
                "output_dtype=float32, and check the model"
            )
        logger.warning(
            "NaN or infinity in vectors of %s: such records are computed in float32 at the end",
            name,
        )

    def _defer(self, pack: PackTooLarge, runner: AsyncInferenceRunner) -> None:
        """Take note of a record that does not fit into the device's memory, alone."""
        if runner.device == CPU:
            self._fail(pack)
        name = self._means.name(int(pack.rows[0]))
        logger.warning("%s: does not fit into the GPU's memory; it goes to the CPU", name)
        statistics = PackStatistics(
            pack=pack.number,
            records=0,
            residues=0,
            tokens=0,
            token_budget=self.packs.budget(pack.number),
            fill=0.0,
            wait_seconds=0.0,
            forward_seconds=0.0,
            finished_seconds=0.0,
            passes=2,
            deferred_records=1,
            float32_records=0,
            masked=int(pack.masked),
        )
        none = np.empty(0, np.int64)
        width, dtype = runner.model.geometry.width, runner.plan.output_dtype
        arrays = [a for a in map(Array.named, runner.plan.arrays) if a.masked == pack.masked]
        vectors = {a.name: np.empty((0, *a.line(width)), a.dtype(dtype)) for a in arrays}
        deferred = FinishedPack(statistics, none, none, vectors, pack.rows)
        with Writer() as writer:  # a signal would interrupt it in this thread
            writer.put(lambda: self._sink(deferred), 0)
        self._deferred.update(pack.rows.tolist())
        self.done.add(pack.number)

    def _fail(self, pack: PackTooLarge) -> NoReturn:
        raise Fault(
            f"{self._means.name(int(pack.rows[0]))}: {pack.tokens} tokens do not fit into memory, "
            "even alone; use a machine with more, or long_sequences truncate or window"
        )
