"""The order in which CUDA numbers the GPUs: asked of the driver, in a process of its own.

NVML counts by PCI bus, CUDA puts the fastest first, and what "fastest" is only the driver knows.
The process that asks has started CUDA, and could not be shown another GPU after that.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import uuid

_SECONDS = 60  # a driver that takes longer for its first answer has a GPU that hangs


def uuids_in_cuda_order() -> list[str] | None:
    """Return the GPUs that CUDA shows under this environment, in its order.

    Each is a UUID without the ``GPU-`` or ``MIG-`` that NVML puts before it. None where the driver
    does not answer.
    """
    command = [sys.executable, "-P", "-m", "packedesm.device.driver"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        printed, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()  # and not waited for: what hangs in a driver cannot be ended
    return printed.decode().split() if process.returncode == 0 else None


def _ask() -> list[str]:
    """Ask CUDA's driver; OSError where there is none, or where it refuses."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if status := getattr(cuda, name)(*arguments):
            raise OSError(f"{name}: error {status} of CUDA")

    call("cuInit", 0)
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for ordinal in range(count.value):
        device, raw = ctypes.c_int(), ctypes.create_string_buffer(16)
        call("cuDeviceGet", ctypes.byref(device), ordinal)
        # The second version gives the slice's where a GPU is in MIG mode; before, there is none.
        call("cuDeviceGetUuid_v2", raw, device)
        found.append(str(uuid.UUID(bytes=raw.raw)))
    return found


if __name__ == "__main__":
    print(*_ask())
