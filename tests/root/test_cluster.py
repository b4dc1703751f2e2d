import pytest

from packedesm.cluster import (
    embed_minutes,
    model_megabytes,
    reference_minutes,
    shards_for,
    transfer_minutes,
)
from packedesm.sequences.partition import token_cost
from tests.typed import checkpoint

DAY = 24 * 60


LARGE = checkpoint("esm2_t36_3B_UR50D")


def test_the_time_of_a_shard_is_twice_that_of_its_operations_and_a_quarter_of_an_hour():
    geometry, lengths = LARGE.geometry, [352] * 100_000
    cost = float(token_cost(lengths, geometry.width).sum())
    seconds = geometry.flops(lengths) / 20e12
    minutes = embed_minutes(LARGE, cost, 1, tflops=20, max_minutes=DAY)
    assert minutes == pytest.approx(15 + 2 * seconds / 60, abs=1)
    assert minutes > 300


def test_each_attempt_is_given_twice_the_time_up_to_the_limit():
    minutes = [embed_minutes(LARGE, 0, n, tflops=20, max_minutes=100) for n in (1, 2, 3, 4)]
    assert minutes == [15, 30, 60, 100]
    assert [transfer_minutes(1200, 10, n, max_minutes=DAY) for n in (1, 2)] == [19, 38]


def test_verification_is_counted_on_a_cpu():
    gpu = embed_minutes(LARGE, 16_384, 1, tflops=20, max_minutes=DAY)
    assert reference_minutes(LARGE, 16_384, 1, max_minutes=DAY) > 4 * gpu


def test_memory_holds_the_weights_twice_and_grows_with_each_attempt():
    first, second = (model_megabytes(LARGE, attempt) for attempt in (1, 2))
    assert first > 2 * 4 * LARGE.geometry.parameters / 1e6
    assert second == pytest.approx(1.5 * first, abs=1)
    assert model_megabytes(checkpoint("esm2_tiny_random"), 1) < 4000


def test_devices_have_one_shard_each_and_more_where_the_load_of_weights_is_a_tenth_of_each():
    tokens = 24 * LARGE.geometry.layers * LARGE.geometry.width**2 / 200e12  # seconds of one
    load = 5 + 8 * LARGE.geometry.parameters / 1e9
    for seconds, each in ((0, 1), (15 * load, 1), (25 * load, 2), (45 * load, 4), (900 * load, 4)):
        for devices in (2, 8):
            assert shards_for(LARGE, devices * seconds / tokens, devices, "cuda") == devices * each


def test_on_a_slow_device_less_work_is_worth_a_shard():
    assert shards_for(LARGE, 1e6, 2, "cuda") < shards_for(LARGE, 1e6, 2, "cpu")
