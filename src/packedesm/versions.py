"""Versions of everything that can change a vector or a figure."""

import platform
from importlib import metadata

PACKAGES = ("packedesm", "torch", "fair-esm", "numpy", "pyarrow", "pyfaidx", "snakemake")


def versions() -> dict[str, str]:
    """Return the installed version of Python and of each package that matters."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}
