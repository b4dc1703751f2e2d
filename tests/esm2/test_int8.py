"""Products in int8, as compiled for each kind of CPU, against exact integers and float64."""

import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packedesm.esm2 import int8
from packedesm.esm2.int8 import Int8Linear, feed_forward, linear, linear_add
from tests.esm2.test_kernels import FLAGS, HERE

CPU = torch.device("cpu")
NEEDED = {
    "VNNI": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"},
    "AVX2": {"avx2", "fma"},
}
LIBRARIES = {"VNNI": int8._VNNI, "AVX2": int8._AVX2}
ALLOWED = int8._LIBRARIES.get(HERE, ())
KERNELS = [k for k, name in LIBRARIES.items() if name in ALLOWED and NEEDED[k] <= FLAGS]
# Around the kernels' groups of 6 tokens and tasks of 48.
TOKENS = (1, 5, 6, 7, 47, 48, 49, 131)
pytestmark = pytest.mark.cpu


def use(kernel, monkeypatch):
    monkeypatch.setattr(int8, "_LIBRARIES", {HERE: (LIBRARIES[kernel],)})
    int8._library.cache_clear()


@pytest.fixture(autouse=True)
def _start():
    torch.manual_seed(0)
    yield
    int8._library.cache_clear()


@pytest.fixture(
    params=KERNELS or [pytest.param("", marks=pytest.mark.skip(reason=f"no kernel is for {HERE}"))]
)
def kernel(request, monkeypatch):
    """Let one library compute, and fail where it was not compiled."""
    use(request.param, monkeypatch)
    assert int8.kernel() == request.param
    return request.param


def plain(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


def drawn(inputs, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return plain(weight, torch.randn(outputs, generator=generator))


def relative_l2(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def test_every_kernel_that_this_cpu_can_run_is_tested():
    """By what the system tells of the CPU, not torch; unless it is to pass for a lesser one."""
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "avx512")
    allowed = {"avx512": ["VNNI", "AVX2"], "avx2": ["AVX2"]}.get(capability, [])
    assert [name for name in allowed if NEEDED[name] <= FLAGS] == KERNELS


def test_the_fastest_is_used():
    assert not KERNELS or int8.kernel() == KERNELS[0]


def integers(tokens, inputs, outputs, kind):
    """Return whole numbers whose scales are 1: tokens (T, K), weights (N, K)."""
    generator = np.random.default_rng(1)
    x, w = np.full((tokens, inputs), 127), np.full((outputs, inputs), 127)
    if kind == "negative":
        x = -x
    elif kind == "both negative":
        x, w = -x, -w
    elif kind == "cancelling":  # after half of them sums are largest, and in the end small
        w[:, inputs // 2 :] *= -1
        w[:, -1] = generator.integers(-127, 128, outputs)
    elif kind == "signs":
        x, w = (part * generator.choice([-1, 1], part.shape) for part in (x, w))
    elif kind == "uniform":
        x, w = (generator.integers(-127, 128, part.shape) for part in (x, w))
        x[:, 3] = w[:, 5] = -127
    return x, w


KINDS = ["largest", "negative", "both negative", "cancelling", "signs", "uniform"]


@pytest.mark.parametrize("inputs", [16, 48, 10_240])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact_whatever_the_numbers_are(kernel, kind, inputs):
    """Up to ESM-2's largest number of inputs but 15B's: what saturates or wraps is far off."""
    x, w = integers(7, inputs, 80, kind)
    exact = torch.from_numpy(x @ w.T)
    layer = Int8Linear(plain(torch.from_numpy(w).float()))
    assert torch.equal(linear(torch.from_numpy(x).float(), layer), exact.float())


@pytest.mark.parametrize("outputs", [16, 32, 48, 64, 80, 176, 320])
def test_every_number_of_outputs_and_tokens(kernel, outputs):
    for tokens in TOKENS:
        x, w = integers(tokens, 64, outputs, "uniform")
        layer = Int8Linear(plain(torch.from_numpy(w).float()))
        found = linear(torch.from_numpy(x).float(), layer)
        assert torch.equal(found, torch.from_numpy(x @ w.T).float())


def test_numbers_are_rounded_to_the_nearest_of_their_scale(kernel):
    """The whole product, as numpy computes it in the same precision."""
    layer, x = drawn(96, 80), torch.randn(49, 96, generator=torch.Generator().manual_seed(1))

    def quantised(rows):
        largest, most = np.abs(rows).max(1, keepdims=True), np.float32(127)
        return np.rint(rows * (most / largest)).astype(np.int64), largest / most

    numbers, scales = quantised(x.numpy())
    weights, weight_scales = quantised(layer.weight.numpy())
    sums = (numbers @ weights.T).astype(np.float32)
    expected = sums * scales * weight_scales.T + layer.bias.numpy()
    found = linear(x, Int8Linear(layer)).numpy()
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_input_and_output_in_either_format(kernel, dtype):
    layer, x = Int8Linear(drawn(96, 80)), torch.randn(49, 96).to(dtype)
    wide = linear(x.float(), layer)
    assert torch.equal(linear(x, layer), wide)
    assert torch.equal(linear(x, layer, dtype=dtype), wide.to(dtype))


def test_bfloat16_is_rounded_to_even_and_nan_stays(kernel):
    """Of numbers that come from the bias, among them those half way between two."""
    bits = torch.arange(-(2**31), 2**31, 2**15 * 301, dtype=torch.int64).to(torch.int32)
    numbers = torch.cat([bits, torch.tensor([2**31 - 1])])[-(len(bits) // 16 * 16) :]
    bias = numbers.to(torch.int32).view(torch.float32)
    layer = Int8Linear(plain(torch.zeros(len(bias), 16), bias))
    found = linear(torch.ones(1, 16), layer, dtype=torch.bfloat16)[0]
    expected = bias.bfloat16()
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().any()
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


def test_gelu_is_exact_to_a_part_in_a_million(kernel):
    """Of numbers that come from the bias: the weights are zeros."""
    x = torch.linspace(-8, 8, 65_536)
    x[::4096] = torch.tensor([0.0, -1e30, 1e30, -90]).repeat(4)
    layer = Int8Linear(plain(torch.zeros(len(x), 16), x))
    found = linear(torch.ones(1, 16), layer, gelu=True)[0]
    expected = F.gelu(x.double())
    assert ((found - expected).abs() <= 1e-6 + 1e-6 * expected.abs()).all()


def test_layernorm_is_that_of_torch(kernel):
    """Seen in the largest number of each token, which stays as it is."""
    norm = nn.LayerNorm(96).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    x = torch.randn(200, 96) * 3 + torch.linspace(-100, 100, 200)[:, None]
    expected = norm.double()(x.double())
    norm.float()
    found = linear(x, Int8Linear(plain(torch.eye(96))), norm)
    largest = expected.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(
        found.double().gather(1, largest), expected.gather(1, largest), rtol=2e-5, atol=0
    )
    assert (found - expected).abs().max() <= 0.51 / 127 * expected.abs().max()


def feed_forward_parts(width=96, seed=0):
    norm = nn.LayerNorm(width).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    smoothing = torch.rand(4 * width) + 0.5
    return norm, Int8Linear(drawn(width, 4 * width)), Int8Linear(drawn(4 * width, width), smoothing)


def every_step(x):
    """Return what each function gives of `x` (T, 96)."""
    norm, first, second = feed_forward_parts()
    wide = torch.cat([x] * 4, 1)
    return [
        linear(x, first, norm, dtype=torch.bfloat16),
        linear(x.bfloat16(), first, gelu=True),
        linear_add(wide, second, x.clone()),
        feed_forward(x.clone(), norm, first, second),
    ]


def test_the_feed_forward_part_is_its_two_products_one_after_the_other(kernel):
    norm, first, second = feed_forward_parts()
    x = torch.randn(131, 96)
    hidden = linear(x, first, norm, gelu=True)
    assert torch.equal(
        feed_forward(x.clone(), norm, first, second), linear_add(hidden, second, x.clone())
    )


def test_every_kernel_gives_the_same_bits(monkeypatch):
    found = []
    for name in KERNELS:
        use(name, monkeypatch)
        torch.manual_seed(0)
        found.append(every_step(torch.randn(131, 96) * 5))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_a_token_has_one_result_alone_in_any_pack_and_with_any_threads(kernel):
    torch.manual_seed(0)
    x = torch.randn(131, 96)
    steps = partial(torch.manual_seed, 7)  # the layers are drawn by every call
    steps()
    together = every_step(x)
    for first, last in ((0, 1), (50, 57), (83, 131)):
        steps()
        part = every_step(x[first:last].clone())
        assert all(torch.equal(a[first:last], b) for a, b in zip(together, part, strict=True))
    threads = torch.get_num_threads()
    for number in (1, threads + 3):
        torch.set_num_threads(number)
        try:
            steps()
            again = every_step(x)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_its_token_nan_and_no_other(kernel, bad):
    torch.manual_seed(0)
    x = torch.randn(20, 96)
    torch.manual_seed(7)
    before = every_step(x)
    x[9, 50] = bad
    torch.manual_seed(7)
    for good, found in zip(before, every_step(x), strict=True):
        assert found[9].isnan().all()
        found[9] = good[9]
        assert torch.equal(found, good)


@pytest.mark.parametrize("size", [0, 1e-45, 1e-38, 1e-31])
def test_tokens_and_weights_that_are_all_but_zero(kernel, size):
    x, weight = torch.randn(3, 96), torch.randn(32, 96)
    x[:, 0] = weight[:, 0] = 0
    for tokens, weights in ((x * size, weight), (x, weight * size)):
        assert not linear(tokens, Int8Linear(plain(weights))).any()


def test_weights_that_are_not_finite_make_their_output_nan(kernel):
    layer = drawn(96, 32)
    layer.weight[5, 7] = float("inf")
    found = linear(torch.randn(3, 96), Int8Linear(layer))
    assert found[:, 5].isnan().all() and found.isnan().sum() == 3


def test_smoothing_multiplies_inputs_and_divides_weights(kernel):
    layer, x = drawn(96, 80), torch.randn(49, 96)
    smoothing = torch.rand(96) + 0.5
    divided = plain(layer.weight * smoothing.reciprocal(), layer.bias)
    found = linear(x, Int8Linear(layer, smoothing))
    assert torch.equal(found, linear(x * smoothing, Int8Linear(divided)))
    assert relative_l2(found, layer.double()(x.double())) <= 0.02


def test_smoothing_saves_what_outliers_would_drown(kernel):
    layer, x = drawn(96, 80), torch.randn(500, 96)
    layer.weight[:, 7] /= 100
    x[:, 7] *= 100
    smoothing = torch.ones(96)
    smoothing[7] = 0.05
    expected = layer.double()(x.double())
    layer.float()
    assert relative_l2(linear(x, Int8Linear(layer)), expected) > 0.1
    assert relative_l2(linear(x, Int8Linear(layer, smoothing)), expected) < 0.02


def test_an_empty_pack(kernel):
    assert linear(torch.empty(0, 96), Int8Linear(drawn(96, 80))).shape == (0, 80)


def test_what_does_not_fit_is_refused(kernel):
    norm, first, second = feed_forward_parts()
    x, residual = torch.randn(3, 96), torch.randn(3, 384)
    for call, match in {
        partial(linear, x[:, :80], first): r"\(T, 96\)",
        partial(linear, x.double(), first): "float32 or bfloat16",
        partial(linear, x, first, dtype=torch.float16): "not torch.float16",
        partial(linear, x, first, nn.LayerNorm(80)): "norm.weight is",
        partial(linear, x, first, norm.bfloat16()): "norm.weight",
        partial(linear_add, x, first, residual[:2]): "residual",
        partial(linear_add, x, first, residual.bfloat16()): "residual",
        partial(linear_add, x, first, torch.randn(384, 3).T): "contiguous",
        partial(feed_forward, x, norm, second, second): "lead back",
        partial(feed_forward, x.double(), norm, first, second): "x is",
        partial(Int8Linear, drawn(96, 80), torch.ones(80)): "smoothing",
        partial(Int8Linear, drawn(96, 80).bfloat16()): "weight",
        partial(linear, x.clone().requires_grad_(), first): "no gradients",
        partial(linear, x, first, nn.LayerNorm(96)): "no gradients",
        partial(linear, x, Int8Linear(drawn(96, 80)).bfloat16()): "scale is",
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_weights_of_another_kernel_are_refused_and_in_no_state_dict(kernel, monkeypatch):
    """Their order differs: they would be read without complaint, and wrongly."""
    layer = Int8Linear(drawn(96, 80))
    assert not layer.state_dict()
    for other in {*KERNELS} - {kernel}:
        use(other, monkeypatch)
        with pytest.raises(ValueError, match=f"for the kernel {kernel}, not {other}"):
            linear(torch.randn(3, 96), layer)


def test_a_copy_of_rows_that_do_not_adjoin_is_used(kernel):
    layer, x = Int8Linear(drawn(96, 80)), torch.randn(5, 192)
    assert torch.equal(linear(x[:, ::2], layer), linear(x[:, ::2].contiguous(), layer))


def test_what_it_needs_is_named(kernel, monkeypatch, tmp_path):
    assert int8.unavailable_reason(CPU, 640, 2560) is None
    assert "not 20" in int8.unavailable_reason(CPU, 640, 20)
    assert "on a CPU" in int8.unavailable_reason(torch.device("cuda", 0), 640)
    with pytest.raises(RuntimeError, match="not 20"):
        Int8Linear(drawn(20, 80))
    source = tmp_path / "int8.cpp"
    source.write_text(int8._SOURCE.read_text() + "// another line")
    monkeypatch.setattr(int8, "_SOURCE", source)
    int8._library.cache_clear()
    assert "other sources" in int8.unavailable_reason(CPU, 640)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "AVX2" in int8.unavailable_reason(CPU, 640)
