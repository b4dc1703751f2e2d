"""What the job's own rate is set against."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from packedesm.device import ceiling, timing
from packedesm.device.ceiling import measure_matmul_peak
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.linear import linear
from tests.device.made_up_gpu import DEFAULT, GB, MadeUpGpu, empty_model

PLENTY = 1e15  # operations


def operators(work) -> set[str]:
    with torch.profiler.profile() as profile:
        work()
    return {event.key for event in profile.key_averages()}


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_is_taken_with_the_library_that_layers_use(dtype):
    model = empty_model(dtype)
    x = torch.randn(8, 64, dtype=dtype)
    used = operators(lambda: linear(x, model.layers[0].qkv))
    assert used
    assert used <= operators(lambda: measure_matmul_peak(model, 8, PLENTY))


def measured(fake_cuda, monkeypatch, seconds, *, free=GB, tokens=512, operations=PLENTY):
    """Measure on a made-up GPU whose products take so long; return the peak and the GPU."""
    with MadeUpGpu(monkeypatch, free=free, seconds=seconds) as gpu:
        return measure_matmul_peak(empty_model(device=fake_cuda), tokens, operations), gpu


def at(rate):
    return lambda shape: 2 * math.prod(shape) / rate


def test_the_fastest_of_the_models_own_products_is_the_peak(fake_cuda, monkeypatch):
    fast = (512, 256, 64)  # the second product of the feed-forward part

    def seconds(shape):
        return at(9e9 if shape == fast else 5e9)(shape)

    peak, gpu = measured(fake_cuda, monkeypatch, seconds)
    assert peak.flops == pytest.approx(9e9)
    assert set(gpu.products) == {(512, 64, 192), (512, 64, 64), (512, 64, 256), fast}


def test_it_is_a_rate_that_lasts(fake_cuda, monkeypatch):
    work = 0.0

    def seconds(shape):
        """Twice as fast for the first tenth of a second, until the clock falls."""
        nonlocal work
        taken = at(2e9 if work < 0.1 else 1e9)(shape)
        work += taken
        return taken

    peak, gpu = measured(fake_cuda, monkeypatch, seconds)
    assert peak.flops == pytest.approx(1e9)
    assert gpu.now > 1 + 4 * 0.1  # after four warm-ups


@pytest.mark.parametrize("operations", [0.0, 2e7, 1e9, 5e10])
def test_on_a_gpu_too_a_short_job_takes_no_more_than_it_may(fake_cuda, monkeypatch, operations):
    peak, gpu = measured(fake_cuda, monkeypatch, at(1e9), operations=operations)
    assert sum(2 * math.prod(shape) for shape in gpu.products) <= operations
    assert peak.flops == (pytest.approx(1e9) if operations else None)


@pytest.fixture
def seen(monkeypatch):
    """The shape (T, K, N) of each product that is timed on this CPU, in order."""
    shapes = []

    def note(x, product):
        shapes.append((*x.shape, product.out_features))
        return linear(x, product)

    monkeypatch.setattr(ceiling, "multiply", note)
    return shapes


@pytest.mark.parametrize("width", [64, 320])
@pytest.mark.parametrize("operations", [0.0, 1e7, 5e7, 1e9, 4e9, 2e10])
def test_it_takes_no_more_operations_than_it_may(seen, width, operations):
    model = empty_model(geometry=Geometry(1, width, width // 32))
    peak = measure_matmul_peak(model, 4096, operations)
    assert sum(2 * math.prod(shape) for shape in seen) <= operations
    smallest = 2 * width**2 * 512 * 3
    assert (peak.flops is not None) == (operations >= smallest) == bool(seen)
    if peak.flops is None:
        assert "too short" in peak.reason
    assert {shape[0] for shape in seen} <= {4096} or {shape[1:] for shape in seen} == {(width,) * 2}


def test_a_long_job_times_all_products_on_the_tokens_of_its_packs_and_then_ends(seen, monkeypatch):
    seconds = iter(k * 0.03 for k in range(10_000))  # each product takes so long
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    measure_matmul_peak(empty_model(), 700, PLENTY)
    counts = Counter(seen)
    assert {shape[1:] for shape in counts} == {(64, 192), (64, 64), (64, 256), (256, 64)}
    assert {shape[0] for shape in counts} == {700}
    assert {0.2 <= (count - 1) * 0.03 <= 0.3 for count in counts.values()} == {True}


def test_a_neighbour_that_comes_and_goes_does_not_lower_the_peak(seen, monkeypatch):
    now, calls = 0.0, 0

    def clock():
        nonlocal now, calls
        now += 0.5 if calls % 8 == 3 else 0.01  # of every fourth product: between its two readings
        calls += 1
        return now

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    peak = measure_matmul_peak(empty_model(), 512, PLENTY)
    assert peak.flops == pytest.approx(2 * 512 * 64 * 256 / 0.01)


def test_where_memory_is_short_fewer_tokens_are_taken(fake_cuda, monkeypatch):
    peak, gpu = measured(fake_cuda, monkeypatch, at(1e9), free=2**20, tokens=1 << 20)
    assert peak.flops == pytest.approx(1e9)
    weights = sum(tensor.nbytes for tensor in empty_model().state_dict().values())
    assert weights < gpu.peak_bytes < weights + 2**19


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB.", "out of memory"),
        (RuntimeError, "CUDA error: unspecified launch failure\nCompile with", "launch failure"),
    ],
    ids=["memory", "another"],
)
def test_what_goes_wrong_becomes_the_reason(fake_cuda, monkeypatch, kind, text, reason, caplog):
    def fail(_shape):
        raise kind(text)

    peak, gpu = measured(fake_cuda, monkeypatch, fail)
    assert peak.flops is None
    assert peak.reason.endswith(reason)
    assert peak.reason in caplog.text
    assert gpu.emptied == [{DEFAULT}]


def test_no_memory_stays_with_the_stream_that_was_measured_on(fake_cuda, monkeypatch):
    _, gpu = measured(fake_cuda, monkeypatch, at(1e9))
    assert gpu.streams == {"another"}
    assert gpu.emptied == [{DEFAULT}]  # where the weights are
