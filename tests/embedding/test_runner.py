import threading
import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packedesm.embedding.lane import CpuLane
from packedesm.embedding.pooling import pool
from packedesm.embedding.runner import ON_GPU, AsyncInferenceRunner, PackTooLarge
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from tests.typed import embed_plan, policy

pytestmark = pytest.mark.usefixtures("one_thread")

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
    plan = embed_plan(arrays=("mean", "cls"), token_budget=BUDGET)
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
    threads, read, at_first_write = set(), [], []

    def source():
        for batch in packs:
            read.append(batch)
            yield batch
        all_read.set()

    def sink(pack):
        threads.add(threading.current_thread())
        all_read.wait(timeout=5)
        at_first_write.append(len(read))

    all_read = threading.Event()
    runner.run(source(), sink)
    assert threading.main_thread() not in threads
    # A disk that takes its time, for a commit, holds nothing up.
    assert at_first_write[0] == len(packs) > 3


def test_what_waits_for_the_disk_is_bounded_by_its_bytes(runner, packs, monkeypatch):
    limit = 3000
    monkeypatch.setattr("packedesm.embedding.writer.WAITING_BYTES", limit)
    read, written, at_first_write, all_read = [], [], [], threading.Event()

    def source():
        for batch in packs:
            read.append(2 * 32 * 4 * len(batch.rows))
            yield batch
        all_read.set()

    def sink(pack):
        if not written:
            assert not all_read.wait(timeout=0.5)
            at_first_write.append(sum(read))
        written.append(sum(array.nbytes for array in pack.vectors.values()))

    runner.run(source(), sink)
    assert written == read
    # What is in the sink counts as waiting; one more pack waits for room.
    assert limit / 2 < at_first_write[0] <= limit + max(read) < sum(read)


class Lane:
    """A device that computes a pack when it is waited for, and then may tell of its memory."""

    def __init__(self, fails=()):
        self.fails = list(fails)  # numbers of the launches whose packs do not fit
        self.on_device = []
        self.most = 0
        self.launches = 0

    def launch(self, batch, embed):
        self.launches += 1
        number = self.launches
        self.on_device.append(batch)
        self.most = max(self.most, len(self.on_device))

        def collect():
            self.on_device.remove(batch)
            if number in self.fails:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return CpuLane().launch(batch, embed)()

        return collect


@pytest.fixture
def on_gpu(model, monkeypatch):
    """Return a function that gives a runner on a GPU whose lane is a given one."""

    def make(lane):
        monkeypatch.setattr("packedesm.embedding.runner.CudaLane", lambda _device: lane)
        plan = embed_plan(arrays=("mean", "cls"), token_budget=BUDGET)
        return AsyncInferenceRunner(model, plan, torch.device("cuda", 0))

    return make


def collected(runner, batches, **options):
    seen = []
    runner.run(batches, seen.append, **options)
    return seen


def assert_same(packs, expected):
    for pack, other in zip(packs, expected, strict=True):
        assert pack.rows.tolist() == other.rows.tolist()
        for output, array in pack.vectors.items():
            np.testing.assert_array_equal(array, other.vectors[output])


def test_three_packs_are_on_a_gpu_while_the_disk_takes_its_time(runner, on_gpu, packs):
    lane, all_launched = Lane(), threading.Event()

    def source():
        yield from packs
        all_launched.set()

    seen, in_time = [], []

    def sink(pack):
        in_time.append(all_launched.wait(timeout=5))
        seen.append(pack)

    on_gpu(lane).run(source(), sink)
    assert all(in_time)
    assert lane.most == ON_GPU
    assert_same(seen, collected(runner, packs))


def test_what_is_on_the_gpu_is_kept_when_the_job_is_stopped(on_gpu, packs):
    def source():
        yield from packs[:5]
        raise SystemExit(143)

    seen = []
    with pytest.raises(SystemExit):
        on_gpu(Lane()).run(source(), seen.append)
    assert [pack.statistics.pack for pack in seen] == list(range(5))


@pytest.mark.parametrize("fails", [[1], [2], [4], [1, 2, 3], [5, 6]])
def test_a_pack_whose_memory_was_short_on_the_device_is_tried_again(runner, on_gpu, packs, fails):
    lane = Lane(fails)
    seen = collected(on_gpu(lane), packs)
    assert_same(seen, collected(runner, packs))
    assert [pack.statistics.pack for pack in seen] == list(range(len(packs)))
    assert lane.launches == len(packs) + len(fails)
    assert sum(pack.statistics.passes - 1 for pack in seen) == len(fails)
    assert lane.most <= ON_GPU


def test_all_but_a_pack_that_does_not_fit_are_handed_over(on_gpu, packs):
    # It is the third, and the fifth launch: two were launched after it.
    lane, seen = Lane([3, 6]), []
    with pytest.raises(PackTooLarge) as caught:
        on_gpu(lane).run(packs, seen.append)
    assert (caught.value.number, caught.value.tokens) == (2, sum(packs[2].lengths))
    assert caught.value.rows.tolist() == packs[2].rows.tolist()
    assert [pack.statistics.pack for pack in seen] == [0, 1, 3, 4]
    assert lane.on_device == []


def test_a_fault_while_writing_is_not_hidden_by_want_of_memory(on_gpu, packs):
    def sink(pack):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        on_gpu(Lane([2, 4])).run(packs[:3], sink)


class FailAt(TorchDispatchMode):
    """Let memory be short at the n-th operator that gives a new tensor, once."""

    def __init__(self, number, text=""):
        super().__init__()
        self.number = number
        self.text = text
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.count += 1
            if self.count == self.number:
                raise RuntimeError(self.text)
        return result


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (
            "launch",
            "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        ),
        ("collect", "CUDA error: out of memory"),
    ],
    ids=["launch", "collect"],
)
def test_memory_that_is_short_at_any_allocation_changes_nothing(runner, on_gpu, packs, place, text):
    two = packs[-2:]
    quiet, counter = collected(runner, two), FailAt(0)
    with counter:
        collected(runner, two[:1])
    assert counter.count > 30
    for number in range(1, counter.count + 1):
        other = runner if place == "launch" else on_gpu(Lane())
        with FailAt(number, text):
            seen = collected(other, two)
        assert_same(seen, quiet)
        assert [pack.statistics.passes for pack in seen] == [2, 1]


def test_records_that_are_not_finite_are_left_out_and_named(model, packs):
    class Half:
        def forward_packed(self, *arguments, cu_seqlens, **options):
            hidden = model.forward_packed(*arguments, cu_seqlens=cu_seqlens, **options)
            lengths = cu_seqlens.diff()
            hidden[(lengths == 22).repeat_interleave(lengths)] = torch.inf
            return hidden

    outputs = ("mean", "residue")
    plan = embed_plan(arrays=outputs, token_budget=BUDGET)
    expected = collected(AsyncInferenceRunner(model, plan, CPU), packs)
    seen = collected(AsyncInferenceRunner(Half(), plan, CPU), packs)
    tokens = np.array([len(sequence) + 2 for sequence in SEQUENCES])
    assert sum(len(pack.deferred) for pack in seen) == (tokens == 22).sum() > 1
    for pack, other in zip(seen, expected, strict=True):
        bad = tokens[other.rows] == 22
        assert pack.deferred.tolist() == other.rows[bad].tolist()
        assert pack.rows.tolist() == other.rows[~bad].tolist()
        np.testing.assert_array_equal(pack.vectors["mean"], other.vectors["mean"][~bad])
        lines = np.repeat(~bad, other.residues)
        np.testing.assert_array_equal(pack.vectors["residue"], other.vectors["residue"][lines])
        told = pack.statistics
        assert told.deferred_records == bad.sum()
        assert (told.records, told.tokens) == ((~bad).sum(), tokens[pack.rows].sum())
        assert told.residues == pack.residues.sum()
        assert told.fill == told.tokens / BUDGET


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
