"""What the CPU's instructions are, for people, and which number formats they leave slow."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

# By torch's name of what it uses, which ATEN_CPU_CAPABILITY can lower.
_X86 = {"AVX512": "AVX-512", "AVX2": "AVX2", "DEFAULT": "no AVX2"}
# For products: what people call it, and the flags of Linux, one of which says that it is there.
_AVX512_EXTRAS = {
    "VNNI": {"avx512_vnni"},
    "bfloat16": {"avx512_bf16", "amx_bf16"},
    "float16": {"avx512_fp16", "amx_fp16"},
    "AMX": {"amx_tile"},
}
_AVX2_EXTRAS = {"VNNI": {"avx_vnni"}}
_ARM_EXTRAS = {"bfloat16": {"bf16"}, "int8 products": {"i8mm"}, "SVE": {"sve"}}
# What oneDNN still uses where ONEDNN_MAX_CPU_ISA keeps it from the rest.
_ISA_LEAVES = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), ()),
    **dict.fromkeys(("AVX2_VNNI", "AVX512_CORE_VNNI"), ("VNNI",)),
    "AVX512_CORE_BF16": ("VNNI", "bfloat16"),
    "AVX512_CORE_FP16": ("VNNI", "bfloat16", "float16"),
}


def instructions() -> str | None:
    """Return what a run can use of this CPU, such as ``AVX-512 with VNNI and bfloat16``.

    None where nobody tells.
    """
    extras = _extras()
    if extras is None:
        return None
    name = "Arm" if _on_arm() else _X86[torch.backends.cpu.get_cpu_capability()]
    if not extras:
        return name
    *first, last = extras
    return f"{name} with {', '.join(first)} and {last}" if first else f"{name} with {last}"


def slow_reason(device: torch.device, dtype: str) -> str | None:
    """Return why `device` is slower in `dtype` than in float32, and what to say instead, or None.

    Without instructions for it each number is widened or narrowed beside each product. Against
    float32 the products of bfloat16 took 2.7 times the CPU time with AVX-512 and 4.3 times with
    AVX2 (AMD EPYC, Zen 4, kept from what it has), and whole passes 6.5 times on a Zen 3; those of
    float16 5 times.
    """
    if device.type != "cpu" or dtype not in ("bfloat16", "float16"):
        return None
    extras = _extras()
    if extras is None or dtype in extras or (_on_arm() and dtype == "float16"):
        return None
    return (
        f"this CPU ({instructions()}) has no instructions for {dtype} and takes about three to six "
        "times as long as in float32: dtype float32 is faster here, and more exact"
    )


def _extras() -> list[str] | None:
    """Return what the CPU has beyond the basic set and a run can use; None where nobody tells."""
    flags = _flags()
    if not flags:
        return None
    if _on_arm():
        table = _ARM_EXTRAS
    elif (capability := torch.backends.cpu.get_cpu_capability()) in _X86:
        table = {"AVX512": _AVX512_EXTRAS, "AVX2": _AVX2_EXTRAS}.get(capability, {})
    else:
        return None
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    usable = _ISA_LEAVES.get(limit, table)
    return [name for name, any_of in table.items() if name in usable and any_of & flags]


def _on_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


@cache
def _flags() -> frozenset[str]:
    """Return Linux's names of what the CPU can do; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines if line.startswith(("flags", "Features")))
    return next((frozenset(text.split()) for _name, _colon, text in found), frozenset())
