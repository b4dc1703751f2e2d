"""Packs that do not fit into memory, and values that are not finite."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from packedesm.device.memory import out_of_memory
from packedesm.embedding.fallback import Fallback, Means
from packedesm.embedding.lane import CpuLane
from packedesm.embedding.pack import not_finite
from packedesm.embedding.replan import PackPlan
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.errors import Fault
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from tests.typed import embed_plan, policy

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BUDGET = 64
OUTPUTS = ("mean", "residue")
SEQUENCES = [("ACDEFGHIKL"[: 1 + n % 10] * (1 + n % 7))[:40] for n in range(40)]
SHORT = ["ACDEF"[: 1 + n % 5] for n in range(200)]
LONGEST = 42  # tokens
TOO_LONG = [row for row, sequence in enumerate(SEQUENCES) if len(sequence) + 2 == LONGEST]
NAN = len(SEQUENCES[12]) + 2  # tokens of the records that half precision cannot embed
BAD = [row for row, sequence in enumerate(SEQUENCES) if len(sequence) + 2 == NAN]


class Device:
    """A model on a device whose memory may be short, and that yields NaN for one length."""

    def __init__(self, model, holds=10**9, fails=(), nan=-1):
        self.model = model
        self.geometry = model.geometry
        self.holds = holds  # tokens at once
        self.fails = fails  # passes in which another process has taken the memory, from 1
        self.nan = nan  # tokens
        self.passes = []

    def forward_packed(self, input_ids, positions, cu_seqlens, max_seqlen, **options):
        self.passes.append(len(input_ids))
        if len(input_ids) > self.holds or len(self.passes) in self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        hidden = self.model.forward_packed(input_ids, positions, cu_seqlens, max_seqlen, **options)
        lengths = cu_seqlens.diff()
        hidden[(lengths == self.nan).repeat_interleave(lengths)] = torch.nan
        return hidden


class Job:
    """What an attempt on a shard begins with, does and leaves."""

    def __init__(self, dataset, state, dtype="float32", device=CPU, **faults):
        self.dataset, self.state, self.device = dataset, state, device
        self.dtype, self.faults = dtype, faults
        self.packs = []  # that reached the sink
        self.replans = ()
        self.loaded = []  # devices of float32 models
        self.float32 = {}  # faults of the float32 model on the GPU

    def run(self, done=(), stop_after=None):
        """Embed what is not among the packs `done`; stop with an error after so many packs."""
        planned = plan_packs(self.dataset.tokens, BUDGET)
        self.plan = PackPlan(self.dataset.tokens, planned, self.replans)
        self.model = self._model(self.dtype, **self.faults)
        kept = embed_plan(arrays=OUTPUTS, token_budget=BUDGET, dtype=self.dtype)
        runner = AsyncInferenceRunner(self.model, kept, self.device)
        left = stop_after

        def sink(pack):
            nonlocal left
            # Signals interrupt the main thread, and would leave half a pack.
            assert threading.current_thread() is not threading.main_thread()
            if left == 0:
                raise InterruptedError
            left = None if left is None else left - 1
            self.packs.append(pack)

        self.packs = list(done)
        means = Means(self._embed, self.dataset.tokens, self._load, "record {}".format, self._keep)
        deferred = [place for pack in done for place in pack.deferred.tolist()]
        numbers = [pack.statistics.pack for pack in done]
        self.fallback = Fallback(means, self.plan, sink, numbers, deferred)
        self.fallback.run(runner)
        return self.packs

    def _model(self, dtype, **faults):
        geometry, state = self.state
        return Device(PackedESM2.from_fair_esm(state, geometry, getattr(torch, dtype)), **faults)

    def _load(self, device):
        self.loaded.append(device)
        return self._model("float32", **(self.float32 if device == GPU else {}))

    def _keep(self, replans):
        self.replans = tuple(replans)

    def _embed(self, runner, numbers, sink):
        packs = [self.plan[number] for number in numbers]
        batches = create_async_dataloader(self.dataset, packs, workers=0, pin_memory=False, seed=1)
        budget = self.plan.budget(numbers[0])
        runner.run(batches, sink, numbers=numbers, token_budget=budget)

    @property
    def budgets(self):
        return [replan.token_budget for replan in self.replans if not replan.float32]


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_random_checkpoint(path, Geometry(layers=2, width=32, heads=2), seed=3)
    return load_state(path)


@pytest.fixture
def job(state, shard, monkeypatch):
    """Return a function that makes a `Job`; on a GPU it computes packs as on a CPU."""
    monkeypatch.setattr("packedesm.embedding.runner.CudaLane", lambda _device: CpuLane())

    def make(dtype="float32", device=CPU, sequences=SEQUENCES, **faults):
        paths = shard(*sequences, deduplicate=False)
        dataset = SequenceDataset(paths.shard_fasta(0), policy())
        return Job(dataset, state, dtype, device, **faults)

    return make


def vectors(packs):
    """Return the vectors of each record, every one of which must be there once."""
    found = {}
    for pack in packs:
        ends = np.cumsum(pack.residues)
        for place, row in enumerate(pack.rows.tolist()):
            assert row not in found
            lines = slice(ends[place] - pack.residues[place], ends[place])
            found[row] = {
                "mean": pack.vectors["mean"][place],
                "residue": pack.vectors["residue"][lines],
            }
    assert sorted(found) == list(range(len(found)))
    return found


def assert_same(packs, expected, rtol=1e-5, rows=None):
    """Compare what is there for `rows`, default all, to so many digits; 0: bit for bit."""
    ours, theirs = vectors(packs), vectors(expected)
    assert ours.keys() == theirs.keys()
    for row in ours if rows is None else rows:
        for output in OUTPUTS:
            np.testing.assert_allclose(ours[row][output], theirs[row][output], rtol=rtol, atol=rtol)


def flagged(packs):
    return sorted(
        row for pack in packs if pack.statistics.float32_records for row in pack.rows.tolist()
    )


# Memory


@pytest.mark.parametrize("number", [1, 3, 7])
def test_memory_that_is_short_once_costs_one_pass_and_nothing_else(job, number):
    quiet, other = job(), job(fails=[number])
    expected = quiet.run()
    packs = other.run()
    assert_same(packs, expected, rtol=0)
    assert other.replans == ()
    again = quiet.model.passes[number - 1]
    assert other.model.passes == [
        *quiet.model.passes[:number],
        again,
        *quiet.model.passes[number:],
    ]
    assert [pack.statistics.passes for pack in packs].count(2) == 1


def test_packs_that_are_left_are_planned_anew_and_full(job):
    short = job(sequences=SHORT, holds=50)
    packs = short.run()
    assert_same(packs, job(sequences=SHORT).run())
    assert short.budgets == [32]
    assert [size > 50 for size in short.model.passes] == [True, True, *[False] * len(packs)]
    fills = [pack.statistics.fill for pack in packs]
    assert {pack.statistics.token_budget for pack in packs} == {32}
    assert fills == [pack.statistics.tokens / 32 for pack in packs]
    assert min(fills[:-1]) > 0.9  # halves of packs would not be full


def test_a_budget_that_is_still_too_high_falls_further(job):
    short = job(sequences=SHORT, holds=20)
    assert_same(short.run(), job(sequences=SHORT).run())
    assert short.budgets == [32, 16]


def test_a_remembered_budget_spares_the_failure(job):
    first = job(sequences=SHORT, holds=50)
    with pytest.raises(InterruptedError):
        first.run(stop_after=4)
    second = job(sequences=SHORT, holds=50)
    second.replans = first.replans
    assert_same(second.run(first.packs), job(sequences=SHORT).run())
    assert max(second.model.passes) <= 50
    assert second.replans == first.replans


def test_a_budget_found_under_pressure_recovers(job, monkeypatch):
    monkeypatch.setattr("packedesm.embedding.replan.PATIENCE", 4)
    # In the first two passes another process has the memory, and in two of those after.
    short = job(sequences=SHORT, fails=[1, 2, 7, 8])
    packs = short.run()
    assert_same(packs, job(sequences=SHORT).run())
    # Four packs of 32, two tries with 64, four packs of 32 are too few, eight do.
    assert short.budgets == [32, 64, 32, 64]
    sizes = [pack.statistics.token_budget for pack in packs]
    assert sizes == [32] * 4 + [32] * 8 + [64] * (len(packs) - 12)
    assert len(packs) > 13


def test_a_device_that_stays_too_small_is_tried_less_and_less(job, monkeypatch):
    monkeypatch.setattr("packedesm.embedding.replan.PATIENCE", 2)
    short = job(sequences=SHORT, holds=40)
    assert_same(short.run(), job(sequences=SHORT).run())
    tried = [place for place, size in enumerate(short.model.passes) if size > 40]
    # Twice whenever; between them 2, 4, 8, 16 packs.
    assert tried == [0, 1, 4, 5, 10, 11, 20, 21, 38, 39]


def test_a_record_that_does_not_fit_alone_goes_to_the_cpu_and_is_flagged(job):
    gpu = job("bfloat16", GPU, holds=LONGEST - 1)
    gpu.float32 = {"holds": LONGEST - 1}
    packs = gpu.run()
    assert_same(packs, job().run(), rows=TOO_LONG)
    assert flagged(packs) == TOO_LONG
    assert gpu.loaded == [GPU, CPU]


def test_a_record_that_does_not_fit_on_the_cpu_is_reported_by_name(job):
    message = rf"record ({'|'.join(map(str, TOO_LONG))}): 42 tokens do not fit"
    with pytest.raises(Fault, match=message):
        job(holds=LONGEST - 1).run()


# Values


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_records_with_nan_and_no_others_are_computed_in_float32_and_flagged(job, dtype, device):
    exact, half = job().run(), job(dtype).run()
    disturbed = job(dtype, device, nan=NAN)
    packs = disturbed.run()
    assert flagged(packs) == BAD
    assert_same(packs, exact, rows=BAD)
    assert_same(packs, half, rtol=0, rows=sorted(set(range(len(SEQUENCES))) - set(BAD)))
    # In packs of their own, after all others.
    last = [pack for pack in packs if pack.statistics.float32_records]
    assert packs[-len(last) :] == last
    assert sum(pack.statistics.tokens for pack in packs) == disturbed.dataset.tokens.sum()
    assert sum(pack.statistics.deferred_records for pack in packs) == len(BAD)
    assert disturbed.loaded == [device]


def test_two_models_are_never_there_together(job):
    half = job("float16", GPU, nan=NAN)
    load, there = half._load, []

    def watch(device):
        gc.collect()
        there.append(model())
        return load(device)

    make = half._model

    def keep_no_reference(dtype, **faults):
        nonlocal model
        made = make(dtype, **faults)
        model = model or weakref.ref(made)
        return made

    model = None
    half._load, half._model = watch, keep_no_reference
    embed = half._embed

    def drop(runner, numbers, sink):
        half.model = None  # the test's own reference
        embed(runner, numbers, sink)

    half._embed = drop
    half.run()
    assert there == [None]


@pytest.mark.parametrize("holds", [0, NAN - 1, NAN, 2 * NAN])
def test_what_does_not_fit_into_the_gpu_in_float32_goes_to_the_cpu(job, holds):
    gpu = job("float16", GPU, nan=NAN)
    gpu.float32 = {"holds": holds}
    packs = gpu.run()
    assert flagged(packs) == BAD
    assert_same(packs, job().run(), rows=BAD)
    assert gpu.loaded == ([GPU] if holds >= NAN else [GPU, CPU])


def test_a_record_that_the_gpu_does_not_hold_takes_no_other_to_the_cpu(job):
    # In half precision it is too large by itself; those with NaN fit in float32 too.
    gpu = job("float16", GPU, nan=NAN, holds=LONGEST - 1)
    gpu.float32 = {"holds": LONGEST - 1}
    on = {}
    embed = gpu._embed

    def watch(runner, numbers, sink):
        def note(pack):
            on.setdefault(runner.device, []).extend(pack.rows.tolist())
            sink(pack)

        embed(runner, numbers, note if runner.plan.dtype == "float32" else sink)

    gpu._embed = watch
    packs = gpu.run()
    assert flagged(packs) == sorted(BAD + TOO_LONG)
    assert_same(packs, job().run(), rows=BAD + TOO_LONG)
    assert {device: sorted(rows) for device, rows in on.items()} == {GPU: BAD, CPU: TOO_LONG}


def test_no_second_float32_model_is_tried_on_a_gpu(job):
    gpu = job("float32", GPU, holds=LONGEST - 1)
    assert_same(gpu.run(), job().run())
    assert gpu.loaded == [CPU]


def test_float32_weights_that_do_not_fit_into_the_gpu_go_to_the_cpu(job):
    gpu = job("float16", GPU, nan=NAN)
    load = gpu._load

    def too_large(device):
        model = load(device)
        if device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model

    gpu._load = too_large
    assert_same(gpu.run(), job().run(), rows=BAD)
    assert gpu.loaded == [GPU, CPU]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_float32_weights_that_do_not_fit_on_the_cpu_either_are_one_line(job, device):
    def too_large(_device):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    half = job("float16", device, nan=NAN)
    half._load = too_large
    message = rf"record ({'|'.join(map(str, BAD))}): needs the model in float32, which does not fit"
    with pytest.raises(Fault, match=message):
        half.run()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_in_float32_too_is_reported_by_name(job, dtype):
    broken = job(dtype, nan=NAN)
    load = broken._model
    broken._model = lambda dtype, **faults: load(dtype, nan=NAN)
    message = rf"record ({'|'.join(map(str, BAD))}): its vectors hold NaN or infinity, in float32"
    with pytest.raises(Fault, match=message):
        broken.run()


# Killed in between


def test_a_job_that_is_killed_after_any_pack_goes_on_to_the_same_vectors(job):
    """With want of memory and NaN in both attempts; of the packs some had not been committed."""
    faults = {"dtype": "bfloat16", "nan": NAN}
    quiet = job(**faults, holds=50)
    expected = quiet.run()
    assert quiet.budgets == [32]
    assert len(expected) > 20
    for stop in range(1, len(expected) + 1, 3):
        first = job(**faults, holds=50)
        if stop < len(expected):
            with pytest.raises(InterruptedError):
                first.run(stop_after=stop)
        else:
            first.run()
        second = job(**faults, holds=50)
        second.replans = first.replans
        committed = first.packs[: max(0, stop - stop % 4)]
        packs = second.run(committed)
        assert_same(packs, expected, rtol=0)
        assert flagged(packs) == flagged(expected)
        numbers = [pack.statistics.pack for pack in packs]
        assert sorted(numbers) == sorted(pack.statistics.pack for pack in expected)
        assert all(number in second.plan for number in numbers)


def test_a_lost_pack_whose_records_are_finite_this_time_gives_none_twice(job):
    first = job("float16", nan=NAN)
    packs = first.run()
    lost = next(pack for pack in packs if len(pack.deferred))
    second = job("float16")
    second.replans = first.replans
    again = second.run([pack for pack in packs if pack is not lost])
    assert_same(again, packs, rtol=0)
    assert flagged(again) == BAD


# What tells of it


def test_which_records_are_not_finite():
    mean = np.zeros((3, 2), np.float16)
    mean[1, 0] = np.inf
    residue = np.zeros((6, 2), np.float16)
    residue[5, 1] = np.nan
    bad = not_finite({"mean": mean, "residue": residue}, np.array([1, 2, 3]))
    assert bad.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasC"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchr"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (
            RuntimeError(
                'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/'
                'CUDACachingAllocator.cpp":1165, please report a bug to PyTorch.'
            ),
            True,
        ),
        (
            RuntimeError(
                "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "
                '"../c10/cuda/CUDACachingAllocator.cpp":813, please report a bug to PyTorch.'
            ),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), False),
        (RuntimeError("CUDA driver error: device not ready"), False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (
            RuntimeError('block->allocated INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":2'),
            False,
        ),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert out_of_memory(error) is expected
