"""The promise: ``snakemake --profile slurm`` in a checkout, and the result is the local run's."""

import shutil
import subprocess

import pytest

import packedesm
from packedesm.files import read_json
from packedesm.layout import Layout
from tests.slurm.runs import IMPATIENT
from tests.workflow import BIN, ROOT

OURS = ("Snakefile", "config.yaml", "slurm", "profiles", "rules", "scripts", "report", "envs")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout without results."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*OURS, "examples"):
        if (ROOT / name).is_dir() and not (ROOT / name).is_symlink():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def run_in(checkout):
    """Return a function that runs Snakemake in the checkout and returns the folder of results."""

    def run(name, *arguments):
        config = ("--config", "shards=4", "checkpoints=checkpoints", f"results={name}")
        done = subprocess.run(
            [str(BIN / "snakemake"), *arguments, *config],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Layout(checkout / name / "uniprot_500")

    return run


def test_the_slurm_profile_gives_the_same_bytes_as_a_local_run(cluster, run_in):
    gpu = ("--set-resources", "embed:gpu_model=h200")
    slurm = run_in("slurm-results", "--profile", "slurm", *IMPATIENT, *gpu)
    local = run_in("local-results", "--cores", "2")
    for name in ("mean.npy", "index.parquet"):
        assert (slurm.root / name).read_bytes() == (local.root / name).read_bytes()
    assert len(packedesm.open(slurm.root)) == 500
    assert read_json(slurm.verification)["passed"] is True
    for shard in range(4):
        log = slurm.root.parent / ".logs" / "uniprot_500" / f"embed.{shard}.log"
        assert "running on the CPU: no NVIDIA GPU" in log.read_text()
