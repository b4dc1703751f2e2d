"""What pyproject.toml cannot say: the CPU kernels, compiled once for each kind of x86-64 CPU.

Where it cannot be compiled, the package works without it, slower.
"""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

# What torch.backends.cpu.get_cpu_capability() asks of a CPU that it calls by this name.
INSTRUCTIONS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mavx512bf16"],
    "avx2": ["-mavx2", "-mfma"],
}
# No -ffast-math: a NaN must stay one.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-g0"]
SOURCE = "src/packedesm/esm2/kernels.cpp"
DIGEST = hashlib.sha256(Path(SOURCE).read_bytes()).hexdigest()
HERE = sys.platform == "linux" and platform.machine() == "x86_64"

setup(
    ext_modules=[
        Extension(
            f"packedesm.esm2._kernels_{cpu}",
            [SOURCE],
            define_macros=[("SOURCE_DIGEST", f'"{DIGEST}"')],  # see esm2/kernels.py
            extra_compile_args=[*FLAGS, *instructions],
            extra_link_args=["-fopenmp"],
            optional=True,
            py_limited_api=True,  # it is called through ctypes and knows nothing of Python
        )
        for cpu, instructions in INSTRUCTIONS.items()
        if HERE
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if HERE else {},
)
