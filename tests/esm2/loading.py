"""Load a model onto a made-up GPU, really reading its file, and tell what memory that took.

python -m tests.esm2.loading CHECKPOINT.json DTYPE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from packedesm.device import auto
from packedesm.esm2 import checkpoints
from packedesm.esm2.registry import Checkpoint
from tests.fake_cuda.guard import register_guard
from tests.fake_cuda.memory import LiveMemory

CUDA = torch.device("cuda", 0)
COPY = torch.ops.aten._to_copy.default


class CopyingGpu(TorchDispatchMode):
    """Context manager: tensors on the host are real, and those on the GPU have no numbers.

    A copy to the GPU reads its source, as CUDA's does, and converts it on the host if it is to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.host, self.device = LiveMemory(), LiveMemory()
        self._fake = FakeTensorMode()

    def __enter__(self):
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._fake.__exit__(*exception)

    def __torch_dispatch__(self, operator, _types, arguments=(), options=None):
        options = options or {}
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        on_device = any(isinstance(x, FakeTensor) for x in tensors)
        if operator is COPY and options.get("device") == CUDA and not on_device:
            source = arguments[0]
            with _disable_current_modes():
                if options.get("dtype", source.dtype) == source.dtype:
                    source.max()  # reads it, and makes nothing
                else:
                    source = operator(*arguments, **options | {"device": None})
                    self.host.note([source])
            result = torch.empty(source.shape, dtype=source.dtype, device=CUDA)
        elif on_device:
            result = operator(*arguments, **options)
        else:
            with _disable_current_modes():
                result = operator(*arguments, **options)
        if not operator.is_view:  # of the file, for one
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                    (self.device if isinstance(tensor, FakeTensor) else self.host).note([tensor])
        return result


def measure(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes of the weights on the GPU, and of the most memory on either side.

    On the host that is what tensors take besides the file.
    """

    def read(*arguments):
        with _disable_current_modes():  # or torch.load would make made-up tensors
            return checkpoints.read(*arguments)

    with patch.object(auto, "read", read), CopyingGpu() as gpu:
        model = auto.load_model(checkpoint, dtype, CUDA)
    weights = model.state_dict().values()
    assert {tensor.device for tensor in weights} == {CUDA}
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    size = sum(tensor.nbytes for tensor in weights)
    return {"weights": size, "device": gpu.device.most, "host": gpu.host.most}


def most_resident_bytes() -> int:
    """Return the most memory that this process had, what is mapped of files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found) * 1024


if __name__ == "__main__":
    register_guard(Path(sys.argv[1]))
    found = measure(Checkpoint.read(Path(sys.argv[2])), getattr(torch, sys.argv[3]))
    print(json.dumps(found | {"resident": most_resident_bytes()}))
