"""A finished run of two shards; each test takes its own copy, without what its rule makes."""

import shutil
from pathlib import Path

import pytest

from packedesm.paths import Paths
from tests.jobs import first_records
from tests.workflow import snakemake, write_config

OUTPUTS = ["mean", "residue"]
RECORDS = 60
REPEATED = {"again": 6, "once_more": 41}


@pytest.fixture(scope="session")
def sixty(tmp_path_factory, uniprot_500) -> Path:
    """Records of the example: lengths from 31 to 1,934, and two sequences that come again.

    No rule treats the other records differently.
    """
    folder = tmp_path_factory.mktemp("input")
    fasta = first_records(uniprot_500, RECORDS - 2, folder / "sixty.fasta")
    records = fasta.read_text().removesuffix("\n").split("\n>")
    for name, row in REPEATED.items():
        _, sequence = records[row].split("\n", 1)
        records.append(f"{name}\n{sequence}")
    fasta.write_text("\n>".join(records) + "\n")
    return fasta


@pytest.fixture(scope="session")
def finished(made_once, sixty) -> Path:
    """The folder of a finished run on sixty records."""

    def fill(folder: Path) -> None:
        config = {"shards": 2, "outputs": OUTPUTS, "verify": {"sequences": 4}}
        write_config(folder, fasta=str(sixty), **config)
        run = snakemake(folder)
        assert run.returncode == 0, run.stdout

    return made_once("finished", fill)


@pytest.fixture
def run_rule(finished, sixty, tmp_path):
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
        return Paths(folder / "results" / sixty.stem)

    return run
