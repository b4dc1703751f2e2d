import hashlib
from pathlib import Path

import pytest

from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json
from packedesm.paths import Paths
from tests.workflow import snakemake, write_config

RECORD = "results/.work/checkpoint.json"


def test_the_tiny_model_is_recorded_as_meaningless(run_rule):
    paths = run_rule("checkpoint", RECORD)
    record = read_json(Paths(paths.root.parent).checkpoint)
    weights = Path(record["path"])
    assert record["model"] == "esm2_tiny_random.pt"
    assert record["untrained"] is True
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["bytes"] == weights.stat().st_size


@pytest.mark.parametrize("folder", ["", "~/"])
def test_a_changed_file_of_the_users_is_noticed(tmp_path, sixty, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    weights = tmp_path / "mine.pt"
    write_random_checkpoint(weights, MODELS["esm2_tiny_random"], seed=1)
    write_config(tmp_path, fasta=str(sixty), model=f"{folder}mine.pt")
    assert snakemake(tmp_path, RECORD).returncode == 0
    first = read_json(tmp_path / RECORD)
    assert first["untrained"] is False  # nobody can tell for a file of the user's
    assert "Nothing to be done" in snakemake(tmp_path, RECORD).stdout
    write_random_checkpoint(weights, MODELS["esm2_tiny_random"], seed=2)
    assert snakemake(tmp_path, RECORD).returncode == 0
    assert read_json(tmp_path / RECORD)["sha256"] != first["sha256"]


def test_a_regression_is_an_input_where_contacts_are_asked_for(tmp_path, sixty):
    weights = tmp_path / "mine.pt"
    regression = regression_file(weights)
    write_random_checkpoint(weights, MODELS["esm2_tiny_random"], seed=1)
    write_config(tmp_path, fasta=str(sixty), model="mine.pt", outputs=["mean", "contacts"])
    digests = []
    for seed in (1, 2):  # another one is noticed
        write_random_regression(regression, MODELS["esm2_tiny_random"], seed=seed)
        assert snakemake(tmp_path, RECORD).returncode == 0
        record = read_json(tmp_path / RECORD)
        assert record["regression"] == str(regression)
        digests.append(record["sha256"])
    assert digests[0] != digests[1]
    assert "Nothing to be done" in snakemake(tmp_path, RECORD).stdout
    write_config(tmp_path, fasta=str(sixty), model="mine.pt", outputs=["mean"])
    assert snakemake(tmp_path, RECORD).returncode == 0
    record = read_json(tmp_path / RECORD)
    assert record["regression"] is None
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
