"""How fast a forward pass should be on GPUs that nobody here has: arithmetic, not measurement.

    python -m benchmarks.gpu_estimate           # prints the tables
    python -m benchmarks.gpu_estimate --write   # puts them into docs/gpu.md

A pass is products, attention, element-wise work and what lies between kernels. Each is counted, and
divided by what the data sheet promises times the share of it that one measured pass has reached, on
an H200. Other GPUs may reach more or less: bench-gpu tells.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.compare import MAX_LENGTH
from benchmarks.gpu_parts.table import table
from benchmarks.sample import EXAMPLE
from benchmarks.table import put_between
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import MODELS
from packedesm.files import write_text
from packedesm.sequences.fasta import read_records

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- estimate: begin -->", "<!-- estimate: end -->"
TOKENS = 32_768  # of the pack
SHOWN = {"esm2_t33_650M_UR50D": "650M", "esm2_t36_3B_UR50D": "3B"}


@dataclass(frozen=True)
class Gpu:
    """What NVIDIA's data sheet promises, in half precision without sparsity."""

    name: str
    flops: float  # operations per second
    bandwidth: float  # bytes per second
    dtype: str


H200 = Gpu("H200", 989e12, 4.8e12, "bfloat16")  # H200 data sheet: 1,979 with sparsity
GPUS = (
    Gpu("A100 80GB SXM", 312e12, 2.039e12, "bfloat16"),  # A100 data sheet
    Gpu("H100 SXM", 989e12, 3.35e12, "bfloat16"),  # H100 data sheet: 1,979 with sparsity
    Gpu("L4", 121e12, 0.3e12, "bfloat16"),  # L4 data sheet: 242 with sparsity
    Gpu("T4", 65e12, 0.32e12, "float16"),  # T4 data sheet; no bfloat16
)


@dataclass(frozen=True)
class Steps:
    """What does the steps between products, and what that costs in half precision.

    Both numbers are counted by tests on a made-up GPU, in tests/fake_cuda.
    """

    name: str
    moved: int  # bytes of a token and layer over the width, outside products and attention
    launches: int  # of a layer


FUSED = Steps("fused", moved=40, launches=9)  # with a GELU of its own
PLAIN = Steps("torch", moved=76, launches=13)


@dataclass(frozen=True)
class Seconds:
    """Of one forward pass."""

    products: float
    attention: float
    element_wise: float
    launches: float  # gaps between kernels, and what is done once a pass

    @property
    def total(self) -> float:
        """All of it."""
        return self.products + self.attention + self.element_wise + self.launches


# One pass of 650M on an H200: docs/gpu.md, "Fast", column `fa3`, fused.
MEASURED_MODEL, MEASURED_TOKENS = "esm2_t33_650M_UR50D", 24_846
MEASURED_STEPS = Steps("as they were fused then", moved=40, launches=9)
MEASURED = Seconds(
    products=45.0e-3,
    attention=9.3e-3,
    element_wise=2.2e-3 + 4.0e-3 + 6.2e-3,  # rotary, residual sums and LayerNorm, GELU
    launches=68.5e-3 - 66.7e-3,  # what the whole takes beyond these steps
)
MEASURED_PLAIN = 82.1e-3  # the same without fused kernels; not used, but compared with


@dataclass(frozen=True)
class Work:
    """What one pass has to do."""

    product_flops: float
    attention_flops: float
    moved: float  # bytes
    launches: float

    @classmethod
    def of(cls, geometry: Geometry, tokens: int, attended: float, steps: Steps) -> Work:
        """Count it; a token attends to `attended` tokens on average."""
        layers, width = geometry.layers, geometry.width
        return cls(
            product_flops=24.0 * width**2 * tokens * layers,
            attention_flops=4.0 * width * attended * tokens * layers,
            moved=float(steps.moved * width * tokens * layers),
            launches=float(steps.launches * layers),
        )


def estimate(work: Work, gpu: Gpu, attended: float) -> Seconds:
    """Return the seconds of `work` on `gpu`, which reaches what the H200 has reached."""
    known = Work.of(MODELS[MEASURED_MODEL], MEASURED_TOKENS, attended, MEASURED_STEPS)
    compute, memory = H200.flops / gpu.flops, H200.bandwidth / gpu.bandwidth
    return Seconds(
        MEASURED.products * work.product_flops / known.product_flops * compute,
        MEASURED.attention * work.attention_flops / known.attention_flops * compute,
        MEASURED.element_wise * work.moved / known.moved * memory,
        MEASURED.launches * work.launches / known.launches,
    )


def attended_tokens() -> float:
    """Return to how many tokens a token of the example attends on average: its own sequence's."""
    lengths = [min(len(record.sequence), MAX_LENGTH) + 2 for record in read_records(EXAMPLE)]
    tokens = np.array(lengths, np.float64)
    return float(np.square(tokens).sum() / tokens.sum())


def document() -> str:
    """Return the tables of docs/gpu.md."""
    attended = attended_tokens()
    return "\n\n".join([counts(attended), shares(attended), estimates(attended), check(attended)])


def counts(attended: float) -> str:
    """Return what a token costs, by model."""
    rows = []
    for name in SHOWN:
        fused, plain = (Work.of(MODELS[name], 1, attended, steps) for steps in (FUSED, PLAIN))
        flops = [fused.product_flops / 1e9, fused.attention_flops / 1e9]
        moved = [fused.moved / 1e6, plain.moved / 1e6]
        launches = [fused.launches, plain.launches]
        formats = (("{:.3f}", flops), ("{:.2f}", moved), ("{:.0f}", launches))
        rows.append([SHOWN[name], *(text.format(x) for text, pair in formats for x in pair)])
    head = ["model", "products, GFLOP", f"attention to {attended:.0f} tokens, GFLOP"]
    head += ["element-wise, MB", "without fused kernels, MB", "launches of a pass", "without"]
    return f"A token costs, and a pass:\n\n{table(head, rows)}"


def shares(attended: float) -> str:
    """Return what shares of the data sheet the measured pass has reached."""
    known = Work.of(MODELS[MEASURED_MODEL], MEASURED_TOKENS, attended, MEASURED_STEPS)
    products = known.product_flops / MEASURED.products / H200.flops
    attention = known.attention_flops / MEASURED.attention / H200.flops
    memory = known.moved / MEASURED.element_wise / H200.bandwidth
    launch = MEASURED.launches / known.launches
    return (
        f"The pass of {MEASURED_TOKENS:,} tokens measured on an H200 reached {products:.0%} of the "
        f"data sheet's operations in products, {attention:.0%} in attention, {memory:.0%} of its "
        f"bandwidth in element-wise work, and lost {1e6 * launch:.1f} µs at each launch."
    )


def estimates(attended: float) -> str:
    """Return the estimate of each model on each GPU."""
    rows = []
    for name in SHOWN:
        for gpu in (*GPUS, H200):
            fused, plain = (
                estimate(Work.of(MODELS[name], TOKENS, attended, steps), gpu, attended)
                for steps in (FUSED, PLAIN)
            )
            parts = (fused.products, fused.attention, fused.element_wise, fused.launches)
            rows.append(
                [
                    *(SHOWN[name], gpu.name, gpu.dtype),
                    *(f"{1e3 * seconds:.1f}" for seconds in (*parts, fused.total)),
                    *(f"{rounded(TOKENS / total.total):,}" for total in (fused, plain)),
                ]
            )
    head = ["model", "GPU", "dtype", "products, ms", "attention, ms", "element-wise, ms"]
    head += ["launches, ms", "pass, ms", "tokens/s", "without fused kernels"]
    return f"**Estimated**, for a pack of {TOKENS:,} tokens:\n\n{table(head, rows)}"


def check(attended: float) -> str:
    """Return how near the estimate comes to a pass that it was not made from."""
    work = Work.of(MODELS[MEASURED_MODEL], MEASURED_TOKENS, attended, PLAIN)
    seconds = estimate(work, H200, attended).total
    return (
        f"For the pass without fused kernels, which it was not made from, the same arithmetic "
        f"gives {1e3 * seconds:.1f} ms on the H200; {1e3 * MEASURED_PLAIN:.1f} were measured."
    )


def rounded(number: float) -> int:
    """Return a number with two digits that mean something."""
    return int(float(f"{number:.1e}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or put them into the document, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into docs/gpu.md")
    if parser.parse_args(arguments).write:
        text = DOCUMENT.read_text("utf-8")
        write_text(DOCUMENT, put_between(text, BEGIN, END, document()))
    else:
        print(document())
    return 0


if __name__ == "__main__":
    sys.exit(main())
