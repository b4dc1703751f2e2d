"""Streams, events and the caching allocator of a made-up GPU whose tensors stand on the CPU.

Numbers are computed at once, by the CPU; what is modelled is which operation waits for which. Every
operation on a device tensor belongs to the stream that is current, and knows by a vector clock
which operations of other streams are over before it begins: those that its stream was made to wait
for, and those that the host had waited for when it was launched. Nothing else counts, however
likely it is on a real machine.

The allocator has one pool of blocks per stream, as torch's. A block whose tensor is gone may at
once be given to any tensor of its stream that it can hold; other streams count only if
`record_stream` named them: then it is given again after what they had to do when it was freed.
Whatever touches a block before an earlier touch of another stream must be over is a *hazard*: a
wait or a `record_stream` is missing. So is page-locked memory that is freed, or read by the host,
while a copy may still run.

All this is per thread as far as torch's modes are: operations of other threads are not seen, but
their events and devices are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]  # by stream, how many of its operations are over

_ROUNDED = 512  # bytes: torch gives out multiples
_WAITING = (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__)


def joined(*clocks: Clock) -> Clock:
    """Return the clock that knows all that `clocks` know."""
    return {name: max(c.get(name, 0) for c in clocks) for c in clocks for name in c}


@dataclass(frozen=True)
class Operation:
    """Something that a stream does."""

    name: str
    stream: str
    number: int  # among those of its stream, from 1
    clock: Clock = field(repr=False)  # what is over when it is over

    def before(self, other: Operation) -> bool:
        """Tell whether this is surely over when `other` begins."""
        return self is not other and self.over(other.clock)

    def over(self, clock: Clock) -> bool:
        """Tell whether `clock` knows that this is over."""
        return clock.get(self.stream, 0) >= self.number

    def __str__(self) -> str:
        return f"{self.name} on {self.stream}"


@dataclass(frozen=True)
class Allocation:
    """A request for memory, as `FakeCuda.before_allocation` sees it."""

    kind: str  # "device" or "page-locked"
    bytes: int
    stream: str
    number: int  # among those of its kind, from 1


@dataclass
class Block:
    """Memory of the device, or page-locked memory of the host."""

    kind: str
    bytes: int
    stream: str  # whose pool it belongs to
    touched: list[tuple[Operation, bool]] = field(default_factory=list)  # and whether it wrote
    recorded: set[str] = field(default_factory=set)  # streams named by record_stream

    def pending(self, clock: Clock, *, writes_only: bool) -> Iterator[Operation]:
        """Yield the operations on this block that `clock` does not know to be over."""
        for operation, wrote in self.touched:
            if (wrote or not writes_only) and not operation.over(clock):
                yield operation


class Event:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self, cuda: FakeCuda, *, enable_timing: bool = False, blocking: bool = False):
        self._cuda = cuda
        self.timed, self.blocking = enable_timing, blocking
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = (stream or self._cuda.current_stream()).clock

    def synchronize(self) -> None:
        if not self.blocking:
            self._cuda.spinning.append(threading.current_thread().name)
        self._cuda.host_waits_for(self.clock)

    def query(self) -> bool:
        return joined(self._cuda.host, self.clock) == joined(self._cuda.host)

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed and self.query() and end.query()):
            raise RuntimeError("both events must be timed, recorded and over")
        return 1.0


class Stream:
    """Stands in for `torch.cuda.Stream`."""

    def __init__(self, cuda: FakeCuda, name: str):
        self._cuda = cuda
        self.name = name
        self.clock: Clock = {}

    def wait_event(self, event: Event) -> None:
        self._cuda.collect_garbage()
        self.clock = joined(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self._cuda.collect_garbage()
        self.clock = joined(self.clock, other.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._cuda)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._cuda.host_waits_for(self.clock)


class FakeCuda:
    """A context in which ``cuda`` is the made-up GPU, for the thread that enters it.

    Attributes
    ----------
    hazards : list of str
        What could go wrong on a real machine.
    waits : list of str
        What the host waited for other than by events: reads of numbers, copies of pageable memory.
    spinning : list of str
        Threads that waited for an event that is not blocking.
    devices : dict
        The device that each thread has set, by the thread's name.
    operations : list of Operation
        What the streams did, in the order of launching.
    before_allocation : callable
        Called with each `Allocation`; what it raises, the allocation raises.
    emptied : int
        How often the cache was emptied.
    """

    def __init__(self) -> None:
        self.hazards: list[str] = []
        self.waits: list[str] = []
        self.spinning: list[str] = []
        self.devices: dict[str, torch.device] = {}
        self.operations: list[Operation] = []
        self.before_allocation: Callable[[Allocation], None] = lambda _allocation: None
        self.emptied = 0
        self.host: Clock = {}
        self.streams: list[Stream] = [Stream(self, "default")]
        self._current = threading.local()
        self._lock = threading.RLock()
        self._live: dict[int, tuple[StorageWeakRef, Block]] = {}
        self._free: list[Block] = []
        self._count = {"device": 0, "page-locked": 0}
        self._target: str | None = None  # where the operation that runs puts its result

    def __enter__(self) -> FakeCuda:
        self._exit = ExitStack()
        patches = {
            "Stream": self._new_stream,
            "Event": lambda **options: Event(self, **options),
            "stream": self._stream,
            "current_stream": self.current_stream,
            "set_device": self._set_device,
            "synchronize": lambda _device=None: self.host_waits_for(self._all()),
            "empty_cache": self._empty_cache,
        }
        self._exit.enter_context(mock.patch.multiple(torch.cuda, **patches))
        record_stream = lambda tensor, stream: self.record_stream(tensor, stream)  # noqa: E731
        self._exit.enter_context(mock.patch.object(torch.Tensor, "record_stream", record_stream))
        self._exit.enter_context(_Functions(self))
        self._exit.enter_context(_Operators(self))
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    @property
    def live_bytes(self) -> int:
        """Bytes of device memory that tensors hold."""
        self.collect_garbage()
        return sum(block.bytes for _, block in self._live.values() if block.kind == "device")

    @property
    def cached_bytes(self) -> int:
        """Bytes of device memory that the allocator keeps for later."""
        self.collect_garbage()
        return sum(block.bytes for block in self._free)

    def current_stream(self, _device: object = None) -> Stream:
        return getattr(self._current, "streams", self.streams[:1])[-1]

    def host_waits_for(self, clock: Clock) -> None:
        """Let the host know all that `clock` knows."""
        self.collect_garbage()
        self.host = joined(self.host, clock)

    def may_be_read(self, tensor: torch.Tensor) -> bool:
        """Tell whether the host may read a tensor: no stream may still write to it."""
        block = self.block(tensor)
        return block is None or not any(block.pending(self.host, writes_only=True))

    def is_page_locked(self, tensor: torch.Tensor) -> bool:
        return (block := self.block(tensor)) is not None and block.kind == "page-locked"

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        return (block := self.block(tensor)) is not None and block.kind == "device"

    def block(self, tensor: torch.Tensor) -> Block | None:
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found and found[1]

    def collect_garbage(self) -> None:
        """Free the blocks whose tensors are gone."""
        with self._lock:
            for key, (reference, block) in list(self._live.items()):
                if reference.expired():
                    del self._live[key]
                    self._release(block)

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Compute an operator, and see what it does to memory."""
        self.collect_garbage()
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        on_device = self._target is not None or any(map(self.is_on_device, inputs))
        known = {x.untyped_storage()._cdata for x in inputs}
        made = [x for x in outputs if x.untyped_storage()._cdata not in known]
        written = _written(func, args, kwargs)
        if not made and not written:
            return result  # a view
        with self._lock:
            if on_device:
                self._touch(str(func), inputs, written, made)
            else:
                self._touch_by_host(str(func), inputs, written)
        return result

    @contextmanager
    def placing(self, target: str) -> Iterator[None]:
        """Put what operators make in ``device``, ``page-locked`` or ``pageable`` memory."""
        self._target, before = target, self._target
        try:
            yield
        finally:
            self._target = before

    def allocate(self, kind: str, tensor: torch.Tensor) -> Block:
        """Give a new tensor a block."""
        stream = self.current_stream().name
        size = -(-tensor.untyped_storage().nbytes() // _ROUNDED) * _ROUNDED
        self._count[kind] += 1
        self.before_allocation(Allocation(kind, size, stream, self._count[kind]))
        block = Block(kind, size, stream)
        if kind == "device":
            block = self._reuse(block) or block
        storage = tensor.untyped_storage()
        self._live[storage._cdata] = (StorageWeakRef(storage), block)
        return block

    def _touch(
        self,
        name: str,
        inputs: list[torch.Tensor],
        written: list[torch.Tensor],
        made: list[torch.Tensor],
    ) -> None:
        stream = self.current_stream()
        clock = joined(stream.clock, self.host)
        number = clock.get(stream.name, 0) + 1
        operation = Operation(name, stream.name, number, {**clock, stream.name: number})
        target = self._target or "device"
        for tensor in made:
            if target == "device":
                self.allocate("device", tensor)
        stream.clock = operation.clock
        self.operations.append(operation)
        writes = [block for x in (*written, *made) if (block := self.block(x)) is not None]
        reads = [block for x in inputs if (block := self.block(x)) is not None]
        for block in reads:
            self._check(operation, block, writes=any(block is other for other in writes))
            block.touched.append((operation, False))
        for block in writes:
            self._check(operation, block, writes=True)
            block.touched.append((operation, True))
        copied = self._target is not None or name.startswith("aten.copy_")
        if copied and any(self.block(x) is None for x in (*inputs, *written, *made)):
            self.wait(f"{operation} of pageable memory")

    def _touch_by_host(
        self, name: str, inputs: list[torch.Tensor], written: list[torch.Tensor]
    ) -> None:
        for tensor in (*inputs, *written):
            if (block := self.block(tensor)) is None:
                continue
            writes = any(tensor is other for other in written)
            for other in block.pending(self.host, writes_only=not writes):
                self._hazard(f"{name} on the host touches what {other} may still use")

    def wait(self, what: str) -> None:
        """Let the host wait for the current stream, without an event."""
        self.waits.append(what)
        self.host_waits_for(self.current_stream().clock)

    def record_stream(self, tensor: torch.Tensor, stream: Stream) -> None:
        if (block := self.block(tensor)) is None or block.kind != "device":
            raise RuntimeError("record_stream is for tensors on the device")
        block.recorded.add(stream.name)

    def _reuse(self, wanted: Block) -> Block | None:
        """Return a freed block, the last one that fits; look at all that might be given."""
        fitting = [b for b in self._free if b.stream == wanted.stream and b.bytes >= wanted.bytes]
        stream = self.current_stream()
        clock = joined(stream.clock, self.host)
        for block in fitting:
            for other in block.pending(clock, writes_only=False):
                if other.stream != stream.name:
                    self._hazard(f"memory of {stream.name} is given again while {other} uses it")
        if not fitting:
            return None
        self._free.remove(fitting[-1])
        return fitting[-1]

    def _release(self, block: Block) -> None:
        if block.kind == "page-locked":
            for other in block.pending(self.host, writes_only=False):
                self._hazard(f"page-locked memory is freed while {other} uses it")
            return
        # Events that torch records now, on each stream that was named: they are waited for.
        events = joined(*(s.clock for s in self.streams if s.name in block.recorded), {})
        block.touched = [(op, wrote) for op, wrote in block.touched if not op.over(events)]
        block.recorded = set()
        self._free.append(block)

    def _check(self, operation: Operation, block: Block, *, writes: bool) -> None:
        for other in block.pending(operation.clock, writes_only=not writes):
            self._hazard(f"{operation} does not wait for {other}")

    def _hazard(self, text: str) -> None:
        if text not in self.hazards:
            self.hazards.append(text)

    def _all(self) -> Clock:
        return joined(*(stream.clock for stream in self.streams))

    def _new_stream(self, _device: object = None, **_options: object) -> Stream:
        self.streams.append(Stream(self, f"stream {len(self.streams)}"))
        return self.streams[-1]

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        before = getattr(self._current, "streams", self.streams[:1])
        self._current.streams = [*before, stream]
        try:
            yield
        finally:
            self._current.streams = before

    def _set_device(self, device: torch.device) -> None:
        self.devices[threading.current_thread().name] = torch.device(device)

    def _empty_cache(self) -> None:
        self.collect_garbage()
        self._free.clear()
        self.emptied += 1


class _Functions(TorchFunctionMode):
    """Does what names the device: ``.to(cuda)``, page-locked memory, reading numbers."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, cuda = dict(kwargs or {}), self._cuda
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        on_device = tensor is not None and cuda.is_on_device(tensor)
        if func is torch.Tensor.pin_memory:
            return self._page_locked(tensor.clone())
        if kwargs.pop("pin_memory", False):
            return self._page_locked(func(*args, **kwargs))
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._move(func, tensor, args[1:], kwargs, on_device)
        if func is torch.Tensor.numpy and on_device:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func in _WAITING and on_device:
            cuda.wait(f"{func.__name__} on {cuda.current_stream().name}")
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            with cuda.placing("device"):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _page_locked(self, tensor: torch.Tensor) -> torch.Tensor:
        self._cuda.allocate("page-locked", tensor)
        return tensor

    def _move(
        self, func: Any, tensor: torch.Tensor, args: tuple, kwargs: dict, on_device: bool
    ) -> torch.Tensor:
        devices = [x for x in (*args, kwargs.get("device")) if isinstance(x, str | torch.device)]
        to_cuda, to_cpu = any(map(_is_cuda, devices)), func is torch.Tensor.cpu or bool(devices)
        dtypes = [x for x in (*args, kwargs.get("dtype")) if isinstance(x, torch.dtype)]
        if to_cuda and not on_device:
            with self._cuda.placing("device"):
                moved = tensor.clone()
        elif to_cpu and not to_cuda and on_device:
            with self._cuda.placing("pageable"):
                moved = tensor.clone()
        elif devices or func is torch.Tensor.cpu:
            moved = tensor
        else:
            return func(tensor, *args, **kwargs)
        return moved.to(*dtypes) if dtypes else moved


class _Operators(TorchDispatchMode):
    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._cuda.run(func, args, kwargs or {})


def _written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """Return the arguments that an operator overwrites."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
    return found


def _is_cuda(device: object) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
