"""One cluster for all tests of this folder, and what they compare with: runs without Slurm."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.sequences.fasta import read_records
from tests.slurm.cluster import Cluster, what_is_missing
from tests.slurm.runs import MERGED, ONE_THREAD, SHARDS, Run, start
from tests.workflow import write_config

SWITCH = "PACKEDESM_TEST_SLURM"


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster():
    """A running Slurm; where it was asked for, its absence is a failure."""
    if os.environ.get(SWITCH) != "1":
        pytest.skip(f"{SWITCH}=1 starts a Slurm, as root; it writes /etc/slurm")
    missing = what_is_missing()
    if missing:
        pytest.fail(missing)
    with tempfile.TemporaryDirectory(prefix="packedesm-slurm-") as state:
        cluster = Cluster(Path(state))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def configure(tmp_path_factory, uniprot_500):
    """Return a function that makes a folder for a run of many small packs, each committed."""
    folder = tmp_path_factory.mktemp("input")
    model = folder / "model.pt"
    write_random_checkpoint(model, Geometry(layers=6, width=128, heads=8), seed=1)
    fasta = folder / "proteins.fasta"
    records = [record for record, _ in zip(read_records(uniprot_500), range(400), strict=False)]
    fasta.write_bytes(b"".join(b">%d\n%s\n" % (i, r.sequence) for i, r in enumerate(records)))

    def configure(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_config(
            folder,
            fasta=str(fasta),
            model=str(model),
            shards=SHARDS,
            device="cpu",  # Slurm names GPUs that are not there
            max_length=200,
            token_budget=256,
            commit_packs=1,
        )
        return folder

    return configure


@pytest.fixture(scope="session")
def undisturbed(cluster, configure) -> Iterator[Run]:
    """A run on this machine, without Slurm, that nothing happens to; it may still be at work."""
    run = start(configure("undisturbed"), "--cores", "2", *ONE_THREAD, MERGED)
    yield run
    run.stop()
