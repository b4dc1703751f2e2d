"""Linear layers with what follows them, against the same written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packedesm.esm2.linear import HAS_ONEDNN, linear, linear_add, linear_gelu

# Of the relative L2 distance: the rounding of sums of 48 terms, and of the result alone.
BARS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


@pytest.fixture(params=BARS, ids=str)
def case(request):
    """Return a layer, its input and a residual, and the layer and both in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 40, dtype=request.param).requires_grad_(False)
    x, residual = torch.randn(7, 48).to(request.param), torch.randn(7, 40).to(request.param)
    exact = nn.Linear(48, 40, dtype=torch.float64).requires_grad_(False)
    exact.load_state_dict(layer.state_dict())
    return layer, x, residual, exact


def assert_close(found, expected):
    assert found.shape == expected.shape
    distance = (found.double() - expected).norm() / expected.norm()
    assert distance <= BARS[found.dtype], float(distance)


def test_each_equals_the_same_in_float64(case):
    layer, x, residual, exact = case
    expected = exact(x.double())
    assert_close(linear(x, layer), expected)
    assert_close(linear_gelu(x, layer), F.gelu(expected))
    assert_close(linear_add(x, layer, residual.clone()), residual.double() + expected)


def test_gradients_equal_those_of_the_plain_layers():
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


@pytest.mark.skipif(not HAS_ONEDNN, reason="no AVX-512, or torch without oneDNN")
def test_onednn_takes_the_products_of_half_and_single_precision(monkeypatch):
    monkeypatch.setattr(F, "linear", None)
    x, layer = torch.randn(2, 4), nn.Linear(4, 3).requires_grad_(False)
    assert linear(x, layer).shape == (2, 3)
    assert linear(x.bfloat16(), layer.bfloat16()).dtype == torch.bfloat16
