"""What the device could have computed while a job ran: its peak, over all attempts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packedesm.device.ceiling import Peak, measure_matmul_peak
from packedesm.embedding.resume import Attempt
from packedesm.embedding.runner import AsyncInferenceRunner

logger = logging.getLogger(__name__)

# Of a job's operations, what each of the two measurements may take. Products alone are faster than
# whole passes, so both together cost less than 3% of its time.
_SHARE = 0.015
_MOMENT = 1e-9  # seconds: of an attempt whose packs all went to another device


@dataclass(frozen=True)
class Gauge:
    """Measures the peak beside the work of one attempt."""

    runner: AsyncInferenceRunner
    tokens: int  # of a full pack
    operations: float  # that are left to the attempt

    def measure(self) -> Peak:
        """Return the peak as it is now, see `measure_matmul_peak`."""
        model = getattr(self.runner, "model", None)
        if model is None:
            return Peak(None, "the model had made room for the one in float32")
        return measure_matmul_peak(model, self.tokens, _SHARE * self.operations)


class Peaks(NamedTuple):
    """The rate of the model's matrix products while a job ran, FLOP/s, all attempts together."""

    flops: float | None
    range: tuple[float, float] | None  # the slowest and the fastest that were measured
    reason: str | None  # why nothing is known


def peaks(attempts: Sequence[Attempt], after: Peak) -> Peaks:
    """Return what the device could do, of all that was measured.

    Of the last attempt the faster of its two measurements counts: what else the machine does only
    takes away. Attempts may have run on machines that differ: each counts by its time.

    Parameters
    ----------
    attempts
        All that have committed packs, in order.
    after
        Measured after the last pack.
    """
    rates = [attempt.peak for attempt in attempts]
    measured = [rate for rate in (*rates, after.flops) if rate is not None]
    if rates and after.flops is not None:
        rates[-1] = max(after.flops, rates[-1] or 0.0)
    known = [
        (max(attempt.seconds, _MOMENT), rate)
        for attempt, rate in zip(attempts, rates, strict=True)
        if rate is not None
    ]
    if not known:
        return Peaks(None, None, after.reason)
    lowest, highest = min(measured), max(measured)
    told = (f"{flops / 1e12:.3g}" for flops in (lowest, highest))
    logger.info("matrix products alone ran at %s to %s TFLOP/s", *told)
    could = sum(seconds * rate for seconds, rate in known)
    return Peaks(could / sum(seconds for seconds, _rate in known), (lowest, highest), None)
