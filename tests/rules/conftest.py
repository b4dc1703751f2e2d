"""A finished run of two shards; each test runs one rule beside that rule's inputs alone."""

import csv
import shutil
from pathlib import Path

import pytest

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.registry import MODELS, TINY
from packedesm.paths import Paths
from tests.jobs import first_records
from tests.workflow import snakemake, write_config

OUTPUTS = ["mean", "residue"]
RECORDS = 60
REPEATED = {"again": 6, "once_more": 41}
SUMMARY = "summary.tsv"


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
    """The folder of a finished run on sixty records, with what Snakemake says of each file.

    It was moved after the run: a path that a file kept of it leads nowhere.
    """

    def fill(folder: Path) -> None:
        run_in = folder.with_name("before")
        config = {"shards": 2, "outputs": OUTPUTS, "verify": {"sequences": 4}}
        write_config(run_in, fasta=sixty.name, model=f"{TINY}.pt", **config)
        shutil.copy(sixty, run_in)
        write_random_checkpoint(run_in / f"{TINY}.pt", MODELS[TINY], seed=1)
        run = snakemake(run_in)
        assert run.returncode == 0, run.stdout
        summary = snakemake(run_in, "--detailed-summary", with_errors=False)
        (run_in / SUMMARY).write_text(summary.stdout)
        folder.rmdir()
        run_in.rename(folder)

    return made_once("finished", fill)


@pytest.fixture(scope="session")
def inputs(finished) -> dict[str, set[str]]:
    """The declared inputs of the rule that makes a file, by the file's name."""
    with (finished / SUMMARY).open(newline="") as handle:
        lines = csv.DictReader(handle, delimiter="\t")
        return {line["output_file"]: set(line["input-file(s)"].split(",")) - {""} for line in lines}


@pytest.fixture
def with_inputs(finished, inputs, tmp_path):
    """Return a function that makes a folder with what a rule declares to read, and nothing else."""

    def make(*outputs: str) -> Path:
        folder = tmp_path / "run"
        for name in {"config.yaml"}.union(*(inputs[output] for output in outputs)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(finished / name, folder / name)
        return folder

    return make


@pytest.fixture
def run_rule(with_inputs, sixty):
    """Return a function that runs one rule alone, in a folder with its inputs and nothing else."""

    def run(rule: str, *outputs: str) -> Paths:
        folder = with_inputs(*outputs)
        done = snakemake(
            folder, *outputs, "--allowed-rules", rule, "--rerun-triggers", "mtime", "--force"
        )
        assert done.returncode == 0, done.stdout
        return Paths(folder / "results" / sixty.stem)

    return run
