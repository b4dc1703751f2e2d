"""The fused kernels against what they replace: interpreted on a CPU, and on a GPU where one is."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packedesm.esm2 import fused
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import rotate
from packedesm.esm2.registry import MODELS
from tests.workflow import ROOT

CUDA = torch.device("cuda")
GEOMETRY = Geometry(layers=2, width=320, heads=20)
# Heads of 16, 24, 32, 64 and 128 numbers, as the published models have; tokens that fill no block.
SHAPES = [(20, 16, 7), (20, 24, 5), (20, 32, 5), (20, 64, 9), (40, 64, 3), (40, 128, 2)]
MANY = 24_846

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def check_rotate(heads: int, head_dim: int, tokens: int, dtype: torch.dtype, device: str) -> None:
    """Rotated as exactly as by torch, with float64 as the judge; v and other tokens untouched."""
    from packedesm.esm2 import triton_kernels

    qkv = torch.randn(tokens, 3, heads, head_dim, device=device).to(dtype)
    angles = 1000 * torch.rand(tokens, 1, 1, head_dim // 2, device=device)
    rotary = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(qkv[:, :2].double().unflatten(-1, (-1, 2)))
    exact = torch.view_as_real(pairs * rotary.to(torch.complex128)).flatten(-2)
    twin = relative(rotate(qkv[:, :2].clone(), rotary), exact)
    before = qkv[:, 2].clone()
    triton_kernels.rotate_(qkv, rotary)
    assert relative(qkv[:, :2], exact) <= 1.5 * twin
    assert torch.equal(qkv[:, 2], before)


def check_add_norm(width: int, tokens: int, dtype: torch.dtype, device: str) -> None:
    """The sum to the bit, its LayerNorm as exactly as by torch, also far from zero."""
    from packedesm.esm2 import triton_kernels

    norm = nn.LayerNorm(width, device=device, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(width, device=device))
    norm.bias.copy_(torch.randn(width, device=device))
    for offset in (0, 30):
        x = (3 * torch.randn(tokens, width, device=device) + offset).to(dtype)
        change = torch.randn(tokens, width, device=device).to(dtype)
        total = x + change
        weights = (norm.weight.double(), norm.bias.double())
        exact = F.layer_norm(total.double(), (width,), *weights, norm.eps)
        found = triton_kernels.add_norm(x, change, norm)
        assert torch.equal(x, total)
        # float32 rounds by half a bit: of the result, and of a mean beside which the spread is 3.
        rounding = (1 + offset / 3) * 2**-24
        assert relative(found, exact) <= 1.5 * relative(norm(total), exact) + rounding


def check_all(device: str, dtypes: list[torch.dtype], factor: int = 1) -> None:
    torch.manual_seed(1)
    for heads, head_dim, tokens in SHAPES:
        for dtype in dtypes:
            check_rotate(heads, head_dim, factor * tokens, dtype, device)
            check_add_norm(heads * head_dim, factor * tokens, dtype, device)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_interpreted_are_as_exact_as_torch():
    """Not in bfloat16: Triton's interpreter cuts numbers off where a GPU rounds them."""
    call = "check_all('cpu', [torch.float32, torch.float16])"
    code = f"import torch; from tests.esm2.test_fused import check_all; {call}"
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


@pytest.mark.gpu
@needs_gpu
def test_the_kernels_are_as_exact_as_torch_on_a_gpu():
    check_all("cuda", [torch.float32, torch.float16, torch.bfloat16], factor=301)
    check_rotate(20, 64, MANY, torch.bfloat16, "cuda")
    check_add_norm(1280, MANY, torch.bfloat16, "cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_takes_them_for_every_model(name, dtype):
    assert select_kernels(MODELS[name], dtype, CUDA).name == "triton"


def test_a_cpu_does_not():
    chosen = select_kernels(GEOMETRY, torch.float32, torch.device("cpu"))
    assert chosen == ("torch", "Triton's kernels are for a GPU")


def test_without_triton_torch_does_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    chosen = select_kernels(GEOMETRY, torch.float16, CUDA)
    assert chosen == ("torch", "Triton is not installed")


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (RuntimeError("Failed to find C compiler.\nmore"), "Failed to find C compiler."),
        (False, "compute something else"),
    ],
)
def test_kernels_that_do_not_work_are_not_taken(monkeypatch, trial, reason):
    def tried(*_arguments) -> bool:
        if isinstance(trial, Exception):
            raise trial
        return trial

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(fused, "_right", tried)
    chosen = select_kernels(GEOMETRY, torch.float16, CUDA)
    assert chosen.name == "torch" and reason in chosen.reason and "more" not in chosen.reason
