"""A finished run of two shards; each test takes its own copy, without what its rule makes."""

import shutil
from pathlib import Path

import pytest

from packedesm.paths import Paths
from tests.workflow import snakemake, write_config

OUTPUTS = ["mean", "residue"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, uniprot_500) -> Path:
    """The folder of a finished run on the shipped example."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(
        folder,
        fasta=str(uniprot_500),
        shards=2,
        outputs=OUTPUTS,
        verify={"sequences": 4},
    )
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder


@pytest.fixture
def run_rule(finished, tmp_path):
    """Return a function that runs one rule alone, after its outputs were removed."""

    def run(rule: str, *outputs: str) -> Paths:
        folder = tmp_path / "run"
        # The record of the checkpoint names the file in the finished run's own folder.
        left_out = shutil.ignore_patterns(".snakemake", "checkpoints")
        shutil.copytree(finished, folder, ignore=left_out)
        for output in outputs:
            (folder / output).unlink()
        done = snakemake(
            folder, *outputs, "--allowed-rules", rule, "--rerun-triggers", "mtime", "--force"
        )
        assert done.returncode == 0, done.stdout
        return Paths(folder / "results" / "uniprot_500")

    return run
