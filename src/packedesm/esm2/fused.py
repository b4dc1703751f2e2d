"""Which of `packedesm.esm2.triton_kernels` are used on a device; chosen once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch

from packedesm.errors import first_line
from packedesm.esm2.attention import Selection
from packedesm.esm2.attention_needs import HALF
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.kernel_trials import TRIALS, agrees, first_product
from packedesm.esm2.linear import linear_gelu
from packedesm.esm2.measured import read_measured, write_measured
from packedesm.esm2.steps import KERNELS

TORCH, TRITON, TRITON_GELU = KERNELS

_GELU = "linear_gelu"  # the kernel that is used only where it is faster
_MEASURED = "gelu.json"
_NUMBERS = 1 << 26  # that the product gives while it is timed: enough to fill any GPU, 128 MB
_REPEATS = 10
_ROUNDS = 3


def select_kernels(
    geometry: Geometry, dtype: torch.dtype, device: torch.device, demanded: str | None = None
) -> Selection:
    """Return which kernels are used on the device, and why: a key of `steps.KERNELS`.

    ``triton`` where they work, ``triton+gelu`` where besides the feed-forward part's first product
    and its GELU are faster as one kernel, else ``torch``. The latter is measured, and kept for this
    kind of GPU, width, dtype and version of torch in the user's cache folder, so that all jobs of a
    run do the same.

    Parameters
    ----------
    demanded
        What is to be used, as an earlier attempt found it: then nothing is measured. If it does not
        work, ``torch`` is returned, and why.
    """
    kept = "chosen by an earlier attempt"
    if demanded == TORCH:
        return Selection(TORCH, kept)
    if device.type != "cuda":
        return Selection(TORCH, "Triton's kernels are for a GPU")
    if importlib.util.find_spec("triton") is None:
        return Selection(TORCH, "Triton is not installed")
    names = [name for name in TRIALS if name != _GELU or demanded == TRITON_GELU]
    if reason := _failure(names, geometry, dtype, device):
        return Selection(TORCH, reason)
    if demanded is not None:
        return Selection(demanded, kept)
    pays, reason = _gelu_pays(geometry, dtype, device)
    return Selection(TRITON_GELU if pays else TRITON, f"chosen automatically on a GPU; {reason}")


def _failure(
    names: list[str], geometry: Geometry, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return why one of the kernels cannot be used, or None."""
    for name in names:
        if name == _GELU and dtype not in HALF:
            return f"Triton's kernel {name} is for half precision"
        if name == _GELU and torch.cuda.get_device_capability(device) < (8, 0):
            return f"Triton's kernel {name} needs a GPU of compute capability 8.0"
        try:
            right = agrees(name, geometry, dtype, device)
        except Exception as error:  # Triton compiles on the spot: no C compiler, an old GPU
            return f"Triton's kernel {name} does not work here ({first_line(error)})"
        if not right:
            return f"Triton's kernel {name} computes something else here"
    return None


def _gelu_pays(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    """Tell whether product and GELU are faster as one kernel, and why."""
    name, number_format = torch.cuda.get_device_name(device), str(dtype).removeprefix("torch.")
    key = f"{name}, {geometry.width}, {number_format}, torch {torch.__version__}"
    known = read_measured(_MEASURED, ("one", "two"))
    slower = key in known and not _pays(known[key])
    if not slower and (reason := _failure([_GELU], geometry, dtype, device)):
        return False, reason
    if key not in known:
        try:
            known[key] = _milliseconds(geometry, dtype, device)
        except Exception as error:  # out of memory: the next job may have more of it
            return False, f"product and GELU as one kernel could not be timed ({first_line(error)})"
        finally:
            torch.cuda.empty_cache()  # torch keeps it for this stream, and packs have their own
        write_measured(_MEASURED, key, known[key])
    took = "measured: {one:.3g} ms for product and GELU as one kernel, {two:.3g} as two"
    return _pays(known[key]), took.format(**known[key])


def _pays(milliseconds: dict[str, float]) -> bool:
    return milliseconds["one"] < milliseconds["two"]


@torch.inference_mode()
def _milliseconds(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Return how long product and GELU take, as ``one`` kernel and as ``two``."""
    from packedesm.esm2 import triton_kernels

    layer = first_product(geometry, dtype, device)
    x = torch.randn(_NUMBERS // layer.out_features, geometry.width, device=device).to(dtype)
    ways = {"one": triton_kernels.linear_gelu, "two": linear_gelu}
    rounds = [
        {way: _time(partial(function, x, layer)) for way, function in ways.items()}
        for _ in range(1 + _ROUNDS)
    ]
    return {way: min(timed[way] for timed in rounds[1:]) for way in ways}


def _time(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_REPEATS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / _REPEATS
