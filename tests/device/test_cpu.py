"""What is said of the CPU's instructions, here and on made-up CPUs."""

import os

import pytest
import torch

from packedesm.device import cpu
from packedesm.device.auto import NAMED, resolve_dtype
from packedesm.device.cpu import instructions, slow_reason

CPU = torch.device("cpu")
AVX512 = "avx2 avx512f avx512bw avx512vl"
# What Linux says it can do, what torch takes it for, what oneDNN is kept to; what is said of it.
MADE_UP = [
    ("sse4_2", "x86_64", "DEFAULT", None, "no AVX2", ()),
    ("avx2 fma", "x86_64", "AVX2", None, "AVX2", ()),
    ("avx2 avx_vnni", "x86_64", "AVX2", None, "AVX2 with VNNI", ()),
    (AVX512, "x86_64", "AVX512", None, "AVX-512", ()),
    (f"{AVX512} avx512_vnni", "x86_64", "AVX512", None, "AVX-512 with VNNI", ()),
    (
        *(f"{AVX512} avx512_vnni avx512_bf16", "x86_64", "AVX512", None),
        *("AVX-512 with VNNI and bfloat16", ("bfloat16",)),
    ),
    (
        *(f"{AVX512} avx512_vnni amx_bf16 amx_tile avx512_fp16", "x86_64", "AVX512", None),
        *("AVX-512 with VNNI, bfloat16, float16 and AMX", ("bfloat16", "float16")),
    ),
    (f"{AVX512} avx512_vnni avx512_bf16", "x86_64", "AVX2", None, "AVX2", ()),  # ATEN lowers it
    (f"{AVX512} avx512_vnni avx512_bf16", "x86_64", "AVX512", "AVX512_CORE", "AVX-512", ()),
    (
        *(f"{AVX512} avx512_vnni avx512_bf16", "x86_64", "AVX512", "avx512_core_vnni"),
        *("AVX-512 with VNNI", ()),
    ),
    ("fp asimd", "aarch64", "DEFAULT", None, "Arm", ("float16",)),
    (
        *("fp asimd bf16 i8mm sve", "aarch64", "SVE256", None),
        *("Arm with bfloat16, int8 products and SVE", ("bfloat16", "float16")),
    ),
    ("", "arm64", "DEFAULT", None, None, ("bfloat16", "float16")),  # macOS tells nothing
]


@pytest.mark.parametrize(("flags", "machine", "capability", "isa", "said", "fast"), MADE_UP)
def test_a_cpu_is_called_by_what_a_run_can_use_of_it(
    flags, machine, capability, isa, said, fast, monkeypatch
):
    monkeypatch.setattr(cpu, "_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert instructions() == said
    for dtype in ("bfloat16", "float16"):
        slow = slow_reason(CPU, dtype)
        assert (slow is None) == (dtype in fast)
        if slow:
            assert f"this CPU ({said}) has no instructions for {dtype}" in slow
            assert "dtype float32 is faster here" in slow
            assert resolve_dtype(dtype, CPU) == (dtype, f"{NAMED}; {slow}")  # refused nowhere
    assert slow_reason(CPU, "float32") is None
    assert slow_reason(torch.device("cuda"), "bfloat16") is None


@pytest.mark.cpu
@pytest.mark.skipif(not cpu._flags() or cpu._on_arm(), reason="not a CPU that can be forced")
def test_of_this_cpu_no_more_is_said_than_torch_and_onednn_may_use():
    capability, said = torch.backends.cpu.get_cpu_capability(), instructions()
    assert said.startswith({"AVX512": "AVX-512", "AVX2": "AVX2", "DEFAULT": "no AVX2"}[capability])
    if os.environ.get("ONEDNN_MAX_CPU_ISA") in ("SSE41", "AVX2", "AVX512_CORE"):
        assert "with" not in said and slow_reason(CPU, "bfloat16") is not None
