"""The promise: ``snakemake --profile slurm`` in a checkout, and the result is the local run's."""

import shutil
from pathlib import Path

import packedesm
from packedesm.files import read_json
from packedesm.paths import Paths
from tests.slurm.runs import SLURM, Run, start_in
from tests.workflow import BIN, ROOT

OURS = ("Snakefile", "config.yaml", "slurm", "profiles", "rules", "scripts", "report", "envs")


def make_checkout(folder: Path) -> Path:
    """Copy what a checkout holds, without results."""
    folder.mkdir()
    for name in (*OURS, "examples"):
        if (ROOT / name).is_dir() and not (ROOT / name).is_symlink():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def start_example(checkout: Path, *arguments: str) -> Run:
    """Start the workflow as a user does, in the checkout and with its configuration."""
    # Slurm names GPUs that are not there.
    config = ("--config", "shards=4", "checkpoints=checkpoints", "device=cpu")
    return start_in(checkout, checkout, *arguments, *config, program=[str(BIN / "snakemake")])


def test_the_slurm_profile_gives_the_same_bytes_as_a_local_run(cluster, tmp_path):
    gpu = ("--set-resources", "embed:gpu_model=h200")
    on_slurm = start_example(make_checkout(tmp_path / "slurm"), *SLURM, *gpu)
    here = start_example(make_checkout(tmp_path / "local"), "--cores", "2")
    here.finish()
    on_slurm.finish(600)
    slurm, local = (Paths(run.folder / "results" / "uniprot_500") for run in (on_slurm, here))
    for name in ("mean.npy", "index.parquet"):
        assert (slurm.root / name).read_bytes() == (local.root / name).read_bytes()
    assert len(packedesm.open(slurm.root)) == 500
    assert read_json(slurm.verification)["passed"] is True
    for shard in range(4):
        log = slurm.root.parent / ".logs" / "uniprot_500" / f"embed.{shard}.log"
        assert "running on the CPU: device is cpu" in log.read_text()
