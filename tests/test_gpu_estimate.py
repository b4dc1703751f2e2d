"""docs/gpu.md tells what the arithmetic gives, and the arithmetic is consistent."""

import pytest

from benchmarks import gpu_estimate as estimated
from benchmarks.gpu_estimate import FUSED, GPUS, H200, PLAIN, Work, estimate
from benchmarks.table import put_between
from packedesm.esm2.registry import MODELS
from tests.fake_cuda.test_ratchet import RATCHET

MODEL = MODELS["esm2_t33_650M_UR50D"]
ATTENDED = estimated.attended_tokens()


def test_the_document_tells_what_the_arithmetic_gives():
    text = estimated.DOCUMENT.read_text("utf-8")
    written = put_between(text, estimated.BEGIN, estimated.END, estimated.document())
    assert written == text, "python -m benchmarks.gpu_estimate --write"


def test_the_pass_that_was_measured_is_estimated_as_measured():
    work = Work.of(MODEL, estimated.MEASURED_TOKENS, ATTENDED, estimated.MEASURED_STEPS)
    assert estimate(work, H200, ATTENDED) == estimated.MEASURED
    assert estimated.MEASURED.total == pytest.approx(68.5e-3)


def test_a_measured_pass_that_it_was_not_made_from_is_met_within_five_per_cent():
    work = Work.of(MODEL, estimated.MEASURED_TOKENS, ATTENDED, PLAIN)
    found = estimate(work, H200, ATTENDED).total
    assert found == pytest.approx(estimated.MEASURED_PLAIN, rel=0.05)


@pytest.mark.parametrize("name", ["esm2_t33_650M_UR50D", "esm2_t36_3B_UR50D"])
def test_operations_are_those_of_the_geometry(name):
    lengths = [100, 400, 1024]
    attended = sum(length**2 for length in lengths) / sum(lengths)
    work = Work.of(MODELS[name], sum(lengths), attended, FUSED)
    found = work.product_flops + work.attention_flops
    assert found == pytest.approx(MODELS[name].flops(lengths))


def test_no_gpu_is_promised_more_than_its_data_sheet():
    work = Work.of(MODEL, 1000, ATTENDED, FUSED)
    for gpu in GPUS:
        seconds = estimate(work, gpu, ATTENDED)
        assert seconds.products > work.product_flops / gpu.flops
        assert seconds.attention > work.attention_flops / gpu.flops
        assert seconds.element_wise > work.moved / gpu.bandwidth


@pytest.mark.parametrize(("steps", "kernels"), [(FUSED, "triton"), (PLAIN, "torch")])
def test_bytes_and_launches_are_those_counted_on_the_made_up_gpu(steps, kernels):
    assert (steps.moved, steps.launches) == (RATCHET[kernels].vectors, RATCHET[kernels].layer)
