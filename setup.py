"""What pyproject.toml cannot say: the CPU kernels, compiled once for each kind of x86-64 CPU.

Where they cannot be compiled, the package works without them, slower.
"""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("src/packedesm/esm2")
# What torch.backends.cpu.get_cpu_capability() asks of a CPU that it calls by this name.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
AVX2 = ["-mavx2", "-mfma"]
# No -ffast-math: a NaN must stay one. No contraction in int8: every CPU shall round alike.
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-g0"]
KERNELS = {
    "kernels": {"avx512": [*AVX512, "-mavx512bf16"], "avx2": AVX2},
    "int8": {"vnni": [*AVX512, "-mavx512vnni"], "avx2": AVX2},
}
OWN_FLAGS = {
    "kernels": ["-ffp-contract=fast"],
    "int8": ["-ffp-contract=off", "-Wno-psabi"],  # its vectors are inlined, never passed
}
HERE = sys.platform == "linux" and platform.machine() == "x86_64"


def kernels(name: str, cpu: str, instructions: list[str]) -> Extension:
    """Return how the library of this source for a kind of CPU is compiled."""
    source = FOLDER / f"{name}.cpp"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return Extension(
        f"packedesm.esm2._{name}_{cpu}",
        [str(source)],
        define_macros=[("SOURCE_DIGEST", f'"{digest}"')],  # see esm2/compiled.py
        extra_compile_args=[*FLAGS, *OWN_FLAGS[name], *instructions],
        extra_link_args=["-fopenmp"],
        optional=True,
        py_limited_api=True,  # it is called through ctypes and knows nothing of Python
    )


setup(
    ext_modules=[
        kernels(name, cpu, instructions)
        for name, cpus in KERNELS.items()
        for cpu, instructions in cpus.items()
        if HERE
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if HERE else {},
)
