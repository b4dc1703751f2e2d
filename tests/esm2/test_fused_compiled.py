"""The fused kernels compiled for GPUs that are not here, as jobs launch them: by make test-kernels.

What the cubins need is read by the tool that Triton brings: a stack or local memory would be
registers that did not suffice.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from packedesm.esm2.geometry import VOCABULARY, Geometry
from packedesm.esm2.registry import MODELS
from packedesm.esm2.steps import TRAINED_KEPT

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif("PACKEDESM_TEST_KERNELS" not in os.environ, reason="by make test-kernels"),
]

# Shared memory of one processor (kB) by compute capability, as NVIDIA's programming guide has it;
# each program takes one more. A processor has 64 K registers.
SHARED_KB = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES = DTYPES | {torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
SMALL, WIDEST = (sorted(MODELS.values(), key=lambda geometry: geometry.width)[i] for i in (0, -1))
KERNELS = ("_rotate", "_add_norm", "_embed", "_pool", "_linear_gelu")


class Launches:
    """Stands where a kernel stands, and keeps how it was launched."""

    def __init__(self, kernel):
        self.kernel, self.given, self.options = kernel, {}, {}

    def __getitem__(self, _grid):
        return self._launch

    def _launch(self, *given, **named):
        names = self.kernel.arg_names
        self.given = dict(zip(names, given, strict=False))
        self.given |= {name: named.pop(name) for name in names if name in named}
        self.options = named

    def compile(self, capability: int):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = self.given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = f"*{TYPES[value.dtype]}"
                if not parameter.do_not_specialize_on_alignment:
                    attributes[(place,)] = [["tt.divisibility", 16]]  # as torch allocates
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
                assert parameter.do_not_specialize or isinstance(value, float)
        source = ASTSource(self.kernel, signature, constants, attributes)
        return compile(source, GPUTarget("cuda", capability, 32), self.options)


@pytest.fixture
def launched(monkeypatch):
    """Return a function that launches all kernels as the model does, and gives what they got."""
    assert os.environ.get("TRITON_INTERPRET", "0") == "0"
    from packedesm.esm2 import triton_kernels

    def launch(geometry: Geometry, dtype: torch.dtype, capability: int) -> dict[str, Launches]:
        launches = {name: Launches(getattr(triton_kernels, name)) for name in KERNELS}
        for name, launch in launches.items():
            monkeypatch.setattr(triton_kernels, name, launch)
        monkeypatch.setattr(triton_kernels, "_capability", lambda _device: capability // 10)
        _launch_all(triton_kernels, geometry, dtype)
        monkeypatch.undo()
        return launches

    return launch


def _launch_all(kernels, geometry: Geometry, dtype: torch.dtype) -> None:
    width = geometry.width
    with torch.device("meta"):
        x = torch.empty(100, width, dtype=dtype)
        ids = torch.empty(100, dtype=torch.int64)
        cu_seqlens = torch.empty(5, dtype=torch.int32)
        weight = torch.empty(VOCABULARY, width, dtype=dtype)
        norm = nn.LayerNorm(width, dtype=dtype)
        layer = nn.Linear(width, 4 * width, dtype=dtype)
        frequencies = torch.empty(geometry.head_dim // 2)
    qkv = x.new_empty(100, 3, geometry.heads, geometry.head_dim)
    kernels.rotate_(qkv, ids, frequencies)
    kernels.add_norm(x, x, norm)
    kernels.embed(ids, cu_seqlens, 30, weight, TRAINED_KEPT)
    kernels.pool(x, cu_seqlens, torch.float16)
    kernels.linear_gelu(x, layer)


def needs(compiled, folder: Path) -> dict[str, int]:
    """Return what a program of the kernel takes: registers of a thread, bytes of memories."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = folder / "cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    done = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usage = re.search(r"REG:.*", done.stdout)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage[0])}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("capability", SHARED_KB)
def test_kernels_of_the_widest_model_do_not_spill(launched, capability, dtype, tell, tmp_path):
    tell(check(launched(WIDEST, dtype, capability), capability, DTYPES[dtype], tmp_path))


@pytest.mark.parametrize("capability", [75, 90])
def test_kernels_of_the_smallest_model_do_not_spill(launched, capability, tell, tmp_path):
    tell(check(launched(SMALL, torch.float16, capability), capability, "fp16", tmp_path))


def check(launches: dict[str, Launches], capability: int, dtype: str, folder: Path) -> str:
    told = []
    for name, launch in launches.items():
        if name == "_linear_gelu" and capability < 80:
            continue  # without tensor cores that Triton uses it spills; `select_kernels` refuses it
        compiled = launch.compile(capability)
        needed = needs(compiled, folder)
        assert needed["STACK"] == needed["LOCAL"] == 0, (name, needed)
        threads, shared = 32 * compiled.metadata.num_warps, compiled.metadata.shared
        # Two products at a time: one multiplies while the other computes its GELU.
        programs = 2 if name == "_linear_gelu" else 4
        assert programs * threads * needed["REG"] <= 65_536, (name, needed)
        assert programs * (shared + 1024) <= 1024 * SHARED_KB[capability], (name, shared)
        told.append(f"{name[1:]} {needed['REG']} registers, {shared:,} B")
    return f"sm_{capability} {dtype}: {'; '.join(told)}; no spills"


def test_phases_are_rounded_before_they_are_reduced(launched):
    """A product and a sum in one instruction would not round the product, and turn the phase."""
    ptx = launched(SMALL, torch.float16, 90)["_rotate"].compile(90).asm["ptx"]
    assert "mul.rn.f32" in ptx or "mul.f32" in ptx
    assert "fma" not in ptx and "sin.approx" not in ptx and "cos.approx" not in ptx
