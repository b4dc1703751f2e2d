"""Who takes part: one entry for each row of the comparison, the most important ones first.

A contender's module has `load(task, dtype, **options)`, which returns a
`benchmarks.contenders.base.Contender`. It runs in a process of its own.
"""

from dataclasses import dataclass, field
from typing import Any

PADDED = (2048, 4096, 16384)  # budgets to choose from: tokens of a batch, padding included
GPU = (8192, 32768, 65536)
GPU_SLOW = (8192, 32768)  # a trial of fair-esm in float32 takes as long as all of the fastest


@dataclass(frozen=True)
class Entry:
    """One row of the comparison."""

    name: str
    module: str  # below benchmarks.contenders
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    budgets: tuple[int, ...] = PADDED  # the fastest in the warm-up is taken
    keep_memory: bool = True  # see `benchmarks.worker.KEEP_MEMORY`

    @property
    def key(self) -> str:
        """Name and dtype, which no other entry has."""
        return f"{self.name} {self.dtype}"


BASE = Entry("fair-esm, length-sorted", "fair_esm", "float32")  # what all others are set against

CPU = (
    Entry("packedesm, forward only", "ours", "float32", {"attention": "auto"}),
    Entry("packedesm, forward only", "ours", "bfloat16", {"attention": "auto"}),
    Entry("packedesm, forward only", "ours", "int8", {"attention": "auto"}),
    BASE,
    Entry("Hugging Face, sdpa", "hugging_face", "float32"),
    Entry("Hugging Face, sdpa", "hugging_face", "bfloat16"),
    Entry("packedesm, FASTA to files", "pipeline", "float32"),
    Entry("packedesm, FASTA to files", "pipeline", "bfloat16"),
    Entry("packedesm, FASTA to files", "pipeline", "int8"),
    Entry("esm-cpp", "esm_cpp", "int8", budgets=(0,)),
    Entry("esm-cpp", "esm_cpp", "float32", budgets=(0,)),
    Entry("FAESM", "faesm", "float32"),
    Entry("FAESM", "faesm", "bfloat16"),
    Entry("esm-efficient", "esm_efficient", "bfloat16"),
    Entry("fair-esm, sorted, memory given back", "fair_esm", "float32", keep_memory=False),
    Entry("fair-esm, as esm-extract", "fair_esm", "float32", {"order": "extract"}, (4096,), False),
    Entry("fair-esm, in arrival order", "fair_esm", "float32", {"order": "arrival"}),
)

CUDA = tuple(
    Entry(name, module, dtype, options, GPU_SLOW if module == "fair_esm" else GPU)
    for name, module, dtype, options in (
        ("packedesm, fa3", "ours", "bfloat16", {"attention": "fa3"}),
        ("packedesm, fa3, not fused", "ours", "bfloat16", {"attention": "fa3", "fused": False}),
        ("packedesm, torch_varlen", "ours", "float16", {"attention": "torch_varlen"}),
        ("packedesm, torch_varlen", "ours", "bfloat16", {"attention": "torch_varlen"}),
        ("Hugging Face, sdpa", "hugging_face", "bfloat16", {}),
        ("Hugging Face, sdpa", "hugging_face", "float16", {}),
        ("fair-esm, length-sorted", "fair_esm", "float32", {}),
        ("packedesm, memory_efficient", "ours", "float16", {"attention": "memory_efficient"}),
        ("packedesm, memory_efficient", "ours", "float32", {"attention": "memory_efficient"}),
        ("packedesm, FASTA to files", "pipeline", "float16", {}),
        ("packedesm, FASTA to files", "pipeline", "bfloat16", {}),
        ("FAESM", "faesm", "float16", {}),
        ("esm-efficient", "esm_efficient", "bfloat16", {}),
        ("packedesm, flash_attn", "ours", "float16", {"attention": "flash_attn"}),
        ("fair-esm, length-sorted", "fair_esm", "float16", {}),
        ("packedesm, sdpa", "ours", "float16", {"attention": "sdpa"}),
        ("packedesm, sdpa", "ours", "float32", {"attention": "sdpa"}),
        ("fair-esm, in arrival order", "fair_esm", "float32", {"order": "arrival"}),
    )
)


def entries(device: str) -> tuple[Entry, ...]:
    """Return the entries for a device, ``cpu`` or ``cuda``."""
    return CUDA if device == "cuda" else CPU
