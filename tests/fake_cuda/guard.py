"""Let FakeTensorMode make tensors on ``cuda`` where torch was built for the CPU."""

import ctypes
import os
import subprocess
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")


def compile_guard(folder: Path) -> Path:
    """Compile the library into `folder`, with the compiler that installing packedesm needs too."""
    library = folder / "libguard.so"
    home = Path(torch.__file__).parent
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", str(SOURCE)]
    command += [f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run([*command, abi, "-o", str(library)], check=True)
    return library


def register_guard(library: Path) -> None:
    """Register the guard in this process, for good; a build of torch for GPUs has a real one."""
    ctypes.CDLL(str(library)).register_guard()
