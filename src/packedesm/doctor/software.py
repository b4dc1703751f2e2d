"""Python, packages, and the scheduler of a cluster; nothing of it is imported."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from packedesm.doctor.findings import FAULT, NOTE, Finding
from packedesm.versions import PACKAGES

_PLUGINS = ("snakemake-executor-plugin-", "snakemake-storage-plugin-")
_SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
# Programs that hand in a job, by the scheduler.
_SUBMIT = {"Slurm": "sbatch", "PBS or SGE": "qsub", "LSF": "bsub", "HTCondor": "condor_submit"}


def software() -> Iterator[Finding]:
    """Yield what is said of Python and of the packages that a run needs."""
    facts = {"version": platform.python_version(), "executable": sys.executable}
    said = f"{facts['version']}, {sys.executable}, on {platform.platform()}"
    yield Finding("Software", "Python", said, facts=facts | {"platform": platform.platform()})
    found = {name: _version(name) for name in PACKAGES}
    said = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name, version in found.items() if version is None]
    if not missing:
        yield Finding("Software", "packages", said, facts=dict(found))
        return
    said = f"{' and '.join(missing)} not installed; there are {said}"
    advice = f"install packedesm again into this Python: {sys.executable} -m pip install ..."
    yield Finding("Software", "packages", said, advice, FAULT, dict(found))


def cluster() -> Iterator[Finding]:
    """Yield what is said of schedulers here, and of Snakemake's plugins for them."""
    there = {name: path for name, tool in _SUBMIT.items() if (path := shutil.which(tool))}
    job = os.environ.get("SLURM_JOB_ID")
    said = ", ".join(f"{name} ({path})" for name, path in there.items()) or "none on this machine"
    if "Slurm" in there and not job:
        said += "; `srun --gres=gpu:1 packedesm doctor` tells of a node with a GPU"
    elif job:
        said += f"; this is inside Slurm's job {job}"
    facts = {"submit": there, "slurm_job": job}
    yield Finding("Cluster", "scheduler", said, facts=facts)
    names = {dist.metadata["Name"] or "" for dist in metadata.distributions()}
    plugins = {name: _version(name) for name in sorted(names) if name.startswith(_PLUGINS)}
    said = ", ".join(f"{name} {version}" for name, version in plugins.items()) or "none installed"
    if "Slurm" in there and _SLURM_PLUGIN not in plugins:
        advice = "for `snakemake --profile slurm`: pip install 'packedesm[slurm]'"
        yield Finding("Cluster", "plugins", said, advice, NOTE, plugins)
    else:
        yield Finding("Cluster", "plugins", said, facts=dict(plugins))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
