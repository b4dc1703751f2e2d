"""The way of a pack through a GPU, on a made-up one: what waits for what, whose memory it is."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from packedesm.device import memory
from packedesm.embedding import lane as lanes
from packedesm.embedding.lane import CpuLane, CudaLane
from packedesm.embedding.pooling import pool
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from tests.fake_cuda.streams import Event, FakeCuda, Stream
from tests.typed import embed_plan

DEVICE = torch.device("cuda", 0)
OUTPUTS = ("mean", "residue")
PACKS = 5
TABLE = torch.randn(33, 16, generator=torch.Generator().manual_seed(1))
TOO_LARGE = 1e5  # for float16


def proteins(pack):
    return [Protein(row, b"AKLV" * n, [(0, 4 * n)]) for row, n in enumerate((50 - pack, 40, 10))]


def batches():
    return [VarlenCollator()(proteins(pack)) for pack in range(PACKS)]


class Model:
    """Looks each token up in a table, and adds a little for each place."""

    def __init__(self, table):
        self.table = table

    def forward_packed(self, input_ids, positions, **_options):
        return F.embedding(input_ids, self.table) + positions[:, None]

    def embed(self, batch):
        return pool(
            self.forward_packed(batch.input_ids, batch.positions), batch, OUTPUTS, "float16"
        )


@pytest.fixture
def cuda():
    with torch.inference_mode(), FakeCuda() as cuda:
        yield cuda


def lane_and_model(cuda, table=TABLE):
    # As weights that are cast on the device: the host does not wait for that.
    model = Model(table.to(DEVICE) * 1)
    cuda.waits.clear()
    return CudaLane(DEVICE), model


def embed_all(cuda, lane, model, in_flight=PACKS):
    """Send all packs through a lane, with so many in flight; nothing is kept of them here."""
    collects, embedded = [], []

    def collect():
        embedded.append(collects.pop(0)())
        for vectors in embedded[-1].vectors.values():
            if not cuda.may_be_read(vectors):
                cuda.hazards.append("vectors are given out before they are there")

    for pack in range(PACKS):
        if len(collects) == in_flight:
            collect()
        collects.append(lane.launch(VarlenCollator()(proteins(pack)), model.embed))
    while collects:
        collect()
    cuda.collect_garbage()
    return embedded


@pytest.mark.parametrize("in_flight", [1, 3, PACKS])
def test_vectors_are_those_of_the_cpu_and_no_memory_is_touched_too_early(cuda, in_flight):
    lane, model = lane_and_model(cuda)
    weights = cuda.live_bytes
    embedded = embed_all(cuda, lane, model, in_flight)
    assert cuda.hazards == []
    assert cuda.live_bytes == weights
    for batch, found in zip(batches(), embedded, strict=True):
        expected = CpuLane().launch(batch, Model(TABLE).embed)()
        assert found.bad.tolist() == expected.bad.tolist() == []
        for output in OUTPUTS:
            assert torch.equal(found.vectors[output], expected.vectors[output])


def test_launching_waits_for_nothing_and_collecting_sleeps(cuda):
    lane, model = lane_and_model(cuda)
    embed_all(cuda, lane, model)
    assert cuda.waits == []
    assert cuda.spinning == []


def test_copies_and_computation_are_in_order_and_overlap(cuda):
    lane, model = lane_and_model(cuda)
    embed_all(cuda, lane, model)

    def of(stream):
        found = [operation for operation in cuda.operations if operation.stream == stream.name]
        each = len(found) // PACKS
        return [found[pack * each : (pack + 1) * each] for pack in range(PACKS)]

    copies_in, computed, copies_out = of(lane.copy_in), of(lane.compute), of(lane.copy_out)
    for pack in range(PACKS):
        assert copies_in[pack][-1].before(computed[pack][0])
        assert computed[pack][-1].before(copies_out[pack][0])
    for pack in range(PACKS - 1):
        assert not computed[pack][0].before(copies_in[pack + 1][0])
        assert not copies_out[pack][0].before(computed[pack + 1][0])


def test_a_pack_goes_to_the_device_in_one_copy(cuda):
    asked = []
    cuda.before_allocation = asked.append
    lane = CudaLane(DEVICE)
    lane.launch(batches()[0], lambda batch: {"mean": batch.positions[:1, None].half()})()
    copies = [operation for operation in cuda.operations if operation.stream == lane.copy_in.name]
    assert len(copies) == 1
    # The pack, its vectors and its flags.
    assert sum(allocation.kind == "page-locked" for allocation in asked) == 3


def ignoring(monkeypatch, owner, name, ignored=lambda _first: True):
    """Let a method do nothing where `ignored` says so of its first argument."""
    real = getattr(owner, name)
    fake = lambda self, *args: None if ignored(*args[:1] or [None]) else real(self, *args)  # noqa: E731
    monkeypatch.setattr(owner, name, fake)


@pytest.mark.parametrize(
    ("missing", "hazard"),
    [
        ("wait for the weights", "does not wait for aten.mul.Tensor on default"),
        ("wait for the copy in", "does not wait for aten.clone.default on stream 1"),
        ("wait for the vectors", "aten.copy_.default on stream 3 does not wait"),
        ("record_stream of the pack", "memory of stream 1 is given again while"),
        ("record_stream of the vectors", "memory of stream 2 is given again while"),
        ("wait for the copy out", "before they are there"),
        ("page-locked pack", "page-locked memory is freed"),
    ],
)
def test_what_is_missing_in_a_lane_is_noticed(cuda, monkeypatch, missing, hazard):
    # It would refuse to work, as a real one.
    monkeypatch.setattr(Event, "elapsed_time", lambda _begin, _end: 1.0)
    match missing:
        case "wait for the weights":
            ignoring(monkeypatch, Stream, "wait_stream", lambda other: other.name == "default")
        case "wait for the copy in":
            ignoring(monkeypatch, Stream, "wait_stream", lambda other: other.name != "default")
        case "wait for the vectors":
            ignoring(monkeypatch, Stream, "wait_event")
        case "record_stream of the pack":
            ignoring(monkeypatch, PackedBatch, "record_stream")
        case "record_stream of the vectors":
            ignoring(monkeypatch, torch.Tensor, "record_stream", lambda s: s.name == "stream 3")
        case "wait for the copy out":
            ignoring(monkeypatch, Event, "synchronize")
        case "page-locked pack":
            # It is page-locked once more on the way, and that is not kept.
            to = PackedBatch.to
            monkeypatch.setattr(PackedBatch, "to", lambda b, device: to(b.pin_memory(), device))
    embed_all(cuda, *lane_and_model(cuda))
    assert any(hazard in text for text in cuda.hazards), cuda.hazards


def test_one_thread_touches_the_gpu_and_sets_its_device(cuda):
    device = torch.device("cuda", 3)
    runner = AsyncInferenceRunner(Model(TABLE), embed_plan(arrays=OUTPUTS), device)
    writing = set()
    runner.run(batches(), lambda _pack: writing.add(threading.current_thread().name))
    assert cuda.devices == {"MainThread": device}
    assert "MainThread" not in writing


def test_records_that_are_not_finite_are_found_on_the_device(cuda, monkeypatch):
    def too_slow(*_):
        raise AssertionError("the host looks at the vectors")

    monkeypatch.setattr(lanes, "not_finite", too_slow)
    table = TABLE.clone()
    table[VarlenCollator()([Protein(0, b"W", [(0, 1)])]).input_ids[1]] = TOO_LARGE
    lane, model = lane_and_model(cuda, table)
    sequences = [b"AKL", b"AWL", b"LLL", b"W"]
    batch = VarlenCollator()([Protein(i, s, [(0, len(s))]) for i, s in enumerate(sequences)])
    assert lane.launch(batch, model.embed)().bad.tolist() == [1, 3]


def allocations(cuda, kind):
    """Return how many allocations of a kind the launch of the second pack makes."""
    asked = []
    cuda.before_allocation = lambda a: asked.append(a.kind)
    lane, model = lane_and_model(cuda)
    asked.clear()
    lane.launch(batches()[1], model.embed)()
    cuda.before_allocation = lambda _: None
    return asked.count(kind)


def run_with_one_refused(cuda, kind, number):
    """Run all packs; the n-th allocation of a kind from the second pack on is refused."""
    plan = embed_plan(arrays=OUTPUTS, output_dtype="float16")
    runner = AsyncInferenceRunner(Model(TABLE.to(DEVICE)), plan, DEVICE)
    left = number

    def refuse(allocation):
        nonlocal left
        left -= allocation.kind == kind
        if left == 0:
            left = -1
            raise torch.AcceleratorError("CUDA error: out of memory")

    def source():
        for pack, batch in enumerate(batches()):
            if pack == 1:
                cuda.before_allocation = refuse
            yield batch

    seen = []
    runner.run(source(), seen.append)
    cuda.before_allocation = lambda _: None
    for pack, batch in zip(seen, batches(), strict=True):
        expected = CpuLane().launch(batch, Model(TABLE).embed)().numpy()
        assert pack.rows.tolist() == batch.rows.tolist()
        assert all(np.array_equal(pack.vectors[output], expected[output]) for output in OUTPUTS)
    assert left < 0
    assert cuda.hazards == []
    return [pack.statistics.passes for pack in seen]


def test_device_memory_that_is_short_at_any_allocation_costs_one_pass(cuda):
    count = allocations(cuda, "device")
    assert count > 10
    for number in range(1, count + 1):
        emptied = cuda.emptied
        assert run_with_one_refused(cuda, "device", number) == [1, 2, 1, 1, 1]
        assert cuda.emptied == emptied + 1


def test_page_locked_memory_that_is_short_is_replaced_by_pageable(cuda, caplog):
    memory._say_pageable.cache_clear()
    count = allocations(cuda, "page-locked")
    assert count == 4
    for number in range(1, count + 1):
        assert run_with_one_refused(cuda, "page-locked", number) == [1] * PACKS
    assert cuda.emptied == 0
    assert sum("page-locked" in line for line in caplog.messages) == 1


def test_another_error_of_a_page_locked_allocation_stays_what_it_is(cuda):
    def refuse(allocation):
        if allocation.kind == "page-locked":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lane, model = lane_and_model(cuda)
    cuda.before_allocation = refuse
    with pytest.raises(RuntimeError, match="illegal memory"):
        lane.launch(batches()[0], model.embed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
def test_a_real_gpu_gives_the_vectors_of_the_cpu():
    with torch.inference_mode():
        lane, model = CudaLane(DEVICE), Model(TABLE.to(DEVICE))
        collects = [lane.launch(batch, model.embed) for batch in batches()]
        for batch, collect in zip(batches(), collects, strict=True):
            expected, found = CpuLane().launch(batch, Model(TABLE).embed)(), collect()
            assert found.finite.tolist() == expected.finite.tolist()
            for output in OUTPUTS:
                torch.testing.assert_close(found.vectors[output], expected.vectors[output])
