"""Linear layers with what follows them, against the same written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends.cpu import get_cpu_capability

from packedesm.esm2.linear import linear, linear_add, linear_gelu

pytestmark = pytest.mark.cpu
# Of the relative L2 distance: the rounding of sums of 48 terms, and of the result alone.
BARS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def assert_close(found, expected):
    assert found.shape == expected.shape
    distance = (found.double() - expected).norm() / expected.norm()
    assert distance <= BARS[found.dtype], float(distance)


def check(dtype):
    """Compare every function, in `dtype`, with the same in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 40, dtype=dtype).requires_grad_(False)
    x, residual = torch.randn(7, 48).to(dtype), torch.randn(7, 40).to(dtype)
    exact = nn.Linear(48, 40, dtype=torch.float64).requires_grad_(False)
    exact.load_state_dict(layer.state_dict())
    expected = exact(x.double())
    assert_close(linear(x, layer), expected)
    assert_close(linear_gelu(x, layer), F.gelu(expected))
    assert_close(linear_add(x, layer, residual.clone()), residual.double() + expected)


@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_each_equals_the_same_in_float64(dtype):
    check(dtype)


@pytest.mark.parametrize("onednn", [False, True])
def test_gradients_equal_those_of_the_plain_layers(onednn, monkeypatch):
    monkeypatch.setattr("packedesm.esm2.linear.HAS_ONEDNN", onednn)
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    x, residual = torch.randn(3, 6, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    inputs = (x, residual, layer.weight, layer.bias)
    found = linear(x, layer) + linear_gelu(x, layer) + linear_add(x, layer, residual)
    plain = layer(x) + F.gelu(layer(x)) + residual + layer(x)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(plain.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_onednn_multiplies_where_the_cpu_has_avx512_and_else_torch(dtype, monkeypatch):
    called = []
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: called.append(dtype) or x @ weight.T)
    x, layer = torch.randn(2, 4).to(dtype), nn.Linear(4, 3).to(dtype).requires_grad_(False)
    assert linear(x, layer).dtype == dtype
    has = torch.backends.mkldnn.is_available() and get_cpu_capability() == "AVX512"
    if dtype == torch.bfloat16:
        has = has and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert called == ([] if has and dtype != torch.float16 else [dtype])


@pytest.mark.parametrize("onednn", {False, torch.backends.mkldnn.is_available()})
def test_single_precision_is_right_by_either_library(onednn, monkeypatch):
    """oneDNN has float32 for every CPU: that it is worth it on few is no reason not to test it."""
    monkeypatch.setattr("packedesm.esm2.linear.HAS_ONEDNN", onednn)
    check(torch.float32)


def operators(work) -> list[str]:
    with torch.profiler.profile() as profile:
        work()
    return [event.key for event in profile.key_averages()]


@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_without_onednn_float32_is_added_up_in_place_and_nothing_else_is(dtype, monkeypatch):
    monkeypatch.setattr("packedesm.esm2.linear.HAS_ONEDNN", False)
    monkeypatch.setattr("packedesm.esm2.linear._HAS_BFLOAT16", False)
    layer = nn.Linear(48, 40).to(dtype).requires_grad_(False)
    x, residual = torch.randn(7, 48).to(dtype), torch.randn(7, 40).to(dtype)
    used = operators(lambda: linear_add(x, layer, residual))
    assert ("aten::addmm_" in used, "aten::linear" in used) == (
        (True, False) if dtype == torch.float32 else (False, True)
    )


def test_without_instructions_for_half_precision_torch_multiplies_it(monkeypatch):
    monkeypatch.setattr("packedesm.esm2.linear.HAS_ONEDNN", True)
    monkeypatch.setattr("packedesm.esm2.linear._HAS_BFLOAT16", False)
    check(torch.bfloat16)
