import shutil

import h5py
import numpy as np
import pytest
import yaml

import packedesm
from packedesm.files import file_digest
from packedesm.paths import Paths
from tests.commands import state_of
from tests.workflow import jobs_run, snakemake


@pytest.fixture
def run_in(finished, tmp_path):
    """Return a function that plans or runs the finished workflow with other exports."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)

    def run(exports: list[str], *arguments: str) -> tuple[Paths, set[str]]:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"exports": exports}))
        done = snakemake(folder, *arguments)
        assert done.returncode == 0, done.stdout
        return Paths(folder / "results" / "sixty"), jobs_run(done.stdout)

    return run


@pytest.mark.slow
def test_a_format_that_is_asked_for_later_runs_that_rule_alone(run_in):
    paths, planned = run_in(["h5", "skbio"], "--dry-run")
    assert planned == {"export"}
    before = state_of(paths.root)
    paths, made = run_in(["h5"])
    assert made == {"export"}
    assert before.items() <= state_of(paths.root).items()
    results = packedesm.open(paths.root)
    with h5py.File(paths.exports / "per_residue.h5") as file:
        np.testing.assert_array_equal(file[results.ids[7]], results.residues(7))
    assert run_in(["h5"], "--dry-run")[1] == set()
    assert run_in([], "--dry-run")[1] == set()
    # Another report changes no vector: what was exported of them stands.
    (paths.root.parent.parent / "table.tsv").write_text("id\tkind\nx\ty\n")
    another = ("--dry-run", "--config", "report={'annotations': 'table.tsv'}")
    assert run_in(["h5"], *another)[1] == {"report", "manifest"}
    # What runs again replaces its own files, and no others.
    digest = file_digest(paths.exports / "per_protein.h5")
    (paths.exports / "per_protein.h5").unlink()
    assert run_in(["h5"])[1] == {"export"}
    assert file_digest(paths.exports / "per_protein.h5") == digest
    assert run_in(["h5"], "--dry-run")[1] == set()
