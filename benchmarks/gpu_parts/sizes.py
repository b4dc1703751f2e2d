"""How much is measured: for figures on a GPU, to see that it works on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import benchmarks.limits

REPEATS = {"cuda": 3, "cpu": 1}
PACK = {"cuda": 32_768, "cpu": 1024}  # tokens of the pack of which the layers are timed
LIMITS = {
    "cuda": benchmarks.limits.SIZES["cuda"],
    "cpu": benchmarks.limits.Sizes(side=512, tokens=PACK["cpu"], copied=1 << 24, written=1 << 24),
}


@dataclass(frozen=True)
class Records:
    """Records of the example that a model embeds; above 500 they repeat."""

    contenders: int  # programs and ways, from the top of the list, that embed as many as `compared`
    compared: int
    first: int  # by the command, a job that is mostly start
    many: int  # by the command


ON_CPU = Records(contenders=1, compared=8, first=8, many=16)
ON_GPU = {
    "esm2_t6_8M_UR50D": Records(contenders=9, compared=2048, first=500, many=20_000),
    "esm2_t33_650M_UR50D": Records(contenders=9, compared=256, first=500, many=10_000),
    # Each contender of 3B loads 11 GB.
    "esm2_t36_3B_UR50D": Records(contenders=5, compared=96, first=200, many=2000),
}


def records(model: str, device: str) -> Records:
    """Return how many records `model` embeds on a device."""
    return ON_GPU.get(model, ON_GPU["esm2_t33_650M_UR50D"]) if device == "cuda" else ON_CPU
