"""The made-up streams and allocator notice what would go wrong on a real GPU."""

import pytest
import torch

from tests.fake_cuda.streams import FakeCuda


@pytest.fixture
def cuda():
    with torch.no_grad(), FakeCuda() as cuda:
        yield cuda


@pytest.fixture
def streams(cuda):
    return torch.cuda.Stream(), torch.cuda.Stream()


def made_on(stream, size=1000):
    with torch.cuda.stream(stream):
        return torch.zeros(size, device="cuda")


def test_a_tensor_of_another_stream_is_waited_for(cuda, streams):
    first, second = streams
    x = made_on(first)
    with torch.cuda.stream(second):
        x + 1
    assert cuda.hazards == [
        "aten.add.Tensor on stream 2 does not wait for aten.zeros.default on stream 1"
    ]
    cuda.hazards.clear()
    second.wait_stream(first)
    with torch.cuda.stream(second):
        x + 1
    assert cuda.hazards == []
    with torch.cuda.stream(first):
        x.add_(1)  # overwrites what the second one may still read
    assert cuda.hazards == [
        "aten.add_.Tensor on stream 1 does not wait for aten.add.Tensor on stream 2"
    ]


@pytest.mark.parametrize("named", [False, True])
def test_freed_memory_is_given_again_at_once_unless_another_stream_is_named(cuda, streams, named):
    first, second = streams
    x = made_on(first)
    second.wait_stream(first)
    with torch.cuda.stream(second):
        x.sum()
    if named:
        x.record_stream(second)
    del x
    made_on(first, 900)
    assert bool(cuda.hazards) is not named
    assert cuda.cached_bytes == 4096 + 512  # the sum's block, and the one that served twice


def test_what_the_host_has_waited_for_is_over_for_all_streams(cuda, streams):
    first, second = streams
    x = made_on(first)
    event = first.record_event(torch.cuda.Event(blocking=True))
    assert not event.query()
    event.synchronize()
    with torch.cuda.stream(second):
        x + 1
    assert cuda.hazards == []


def test_page_locked_memory_is_neither_read_nor_freed_while_it_is_copied_to(cuda, streams):
    stream, _ = streams
    x = made_on(stream)
    host = torch.empty(1000, pin_memory=True)
    with torch.cuda.stream(stream):
        host.copy_(x, non_blocking=True)
    assert not cuda.may_be_read(host)
    host + 1
    assert cuda.hazards == [
        "aten.add.Tensor on the host touches what aten.copy_.default on stream 1 may still use"
    ]
    cuda.hazards.clear()
    del host
    cuda.collect_garbage()
    assert cuda.hazards == [
        "page-locked memory is freed while aten.copy_.default on stream 1 uses it"
    ]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(1000).copy_(x, non_blocking=True),
        lambda _x: torch.empty(1000).to("cuda", non_blocking=True),
    ],
    ids=["tolist", "item", "bool", "cpu", "to", "copied to pageable", "copied from pageable"],
)
def test_what_makes_the_host_wait_is_told(cuda, streams, wait):
    stream, _ = streams
    x = made_on(stream)
    with torch.cuda.stream(stream):
        wait(x)
    assert len(cuda.waits) == 1


def test_memory_can_be_short(cuda, streams):
    def refuse(allocation):
        if cuda.live_bytes + allocation.bytes > 8192:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    cuda.before_allocation = refuse
    kept = [made_on(streams[0]) for _ in range(2)]
    with pytest.raises(torch.OutOfMemoryError):
        made_on(streams[0])
    del kept
    made_on(streams[0])


def test_numbers_on_the_device_are_not_numpy(cuda, streams):
    with pytest.raises(TypeError, match="can't convert"):
        made_on(streams[0]).numpy()
