import threading
import time

import numpy as np
import pytest
import torch

from packedesm.embedding.pooling import pool
from packedesm.embedding.runner import IN_FLIGHT, AsyncInferenceRunner
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from tests.typed import embed_plan, policy

POLICY = policy()


CPU = torch.device("cpu")
BUDGET = 64
SEQUENCES = ["ACDEFGHIKL"[: 1 + n % 10] * (1 + n % 7) for n in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_random_checkpoint(path, Geometry(layers=2, width=32, heads=2), seed=3)
    geometry, state = load_state(path)
    return PackedESM2.from_fair_esm(state, geometry)


@pytest.fixture
def packs(shard):
    dataset = SequenceDataset(shard(*SEQUENCES, deduplicate=False).shard_fasta(0), POLICY)
    plan = plan_packs(dataset.tokens, BUDGET)
    return list(create_async_dataloader(dataset, plan, workers=0, pin_memory=False, seed=1))


@pytest.fixture
def runner(model):
    plan = embed_plan(outputs=("mean", "cls"), token_budget=BUDGET)
    return AsyncInferenceRunner(model, plan, CPU)


def run(runner, batches, **options):
    statistics = []
    runner.run(batches, lambda pack: statistics.append(pack.statistics), **options)
    return statistics


def test_every_pack_reaches_the_sink_in_order_with_its_own_vectors(model, runner, packs):
    seen = []
    runner.run(packs, seen.append)
    for batch, pack in zip(packs, seen, strict=True):
        assert pack.rows.tolist() == batch.rows.tolist()
        hidden = model.forward_packed(**batch.inputs)
        expected = pool(hidden, batch, ["mean", "cls"], "float32")
        for output, array in pack.vectors.items():
            np.testing.assert_array_equal(array, expected[output].numpy())


def test_statistics_count_what_was_embedded(runner, packs):
    statistics = run(runner, packs)
    assert [pack.pack for pack in statistics] == list(range(len(packs)))
    assert sum(pack.records for pack in statistics) == len(SEQUENCES)
    assert sum(pack.residues for pack in statistics) == sum(map(len, SEQUENCES))
    assert all(pack.tokens == pack.residues + 2 * pack.records for pack in statistics)
    assert all(0 < pack.fill <= 1 for pack in statistics)
    finished = [pack.finished_seconds for pack in statistics]
    assert finished == sorted(finished)


def test_waiting_for_data_is_measured(runner, packs):
    def slow():
        for batch in packs[:3]:
            time.sleep(0.05)
            yield batch

    statistics = run(runner, slow())
    assert all(pack.wait_seconds >= 0.05 for pack in statistics)


def test_writing_goes_on_beside_the_next_forward_pass(runner, packs):
    threads = set()
    started, overlapped = [], []

    def source():
        for batch in packs[: IN_FLIGHT + 1]:
            overlapped.append(len(started))
            yield batch

    def sink(pack):
        threads.add(threading.current_thread())
        started.append(pack)
        time.sleep(0.1)

    runner.run(source(), sink)
    assert threading.main_thread() not in threads
    # Three packs were asked for while the first was still being written.
    assert overlapped[IN_FLIGHT - 1] <= 1


def test_at_most_three_packs_are_in_flight(runner, packs):
    written, ahead = [], []

    def source():
        for number, batch in enumerate(packs):
            ahead.append(number - len(written))
            yield batch

    def sink(pack):
        time.sleep(0.005)
        written.append(pack)

    runner.run(source(), sink)
    # One more is read while the oldest of the three is waited for.
    assert max(ahead) <= IN_FLIGHT + 1


def test_a_fault_while_writing_stops_the_run(runner, packs):
    def sink(pack):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        runner.run(packs, sink)


def test_nothing_to_embed_is_no_fault(runner):
    assert run(runner, []) == []


def test_packs_that_are_left_keep_their_numbers_and_the_time_before_them(runner, packs):
    statistics = run(runner, packs[3:5], numbers=[3, 4], seconds_before=100.0)
    assert [pack.pack for pack in statistics] == [3, 4]
    assert 100 < statistics[0].finished_seconds < statistics[1].finished_seconds < 200
