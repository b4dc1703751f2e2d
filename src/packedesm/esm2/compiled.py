"""Libraries that were compiled of our own C++ when packedesm was installed: found and checked."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
from pathlib import Path


def load_compiled(name: str, source: Path) -> ctypes.CDLL | None:
    """Return the library of this name, None if there is none that was compiled from `source`.

    Parameters
    ----------
    name
        Of an extension module, dotted; it knows nothing of Python.
    source
        Its one file. In a checkout it may have changed since the installation, and with it the
        functions' arguments.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    library.source_digest.restype = ctypes.c_char_p
    if source.exists() and _digest(source) != library.source_digest():
        return None
    return library


def _digest(source: Path) -> bytes:
    # Here and not by `packedesm.files`: the kernels stand on nothing else of the package.
    return hashlib.sha256(source.read_bytes()).hexdigest().encode()
