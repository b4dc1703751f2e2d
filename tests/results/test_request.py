"""What is told of a folder whose run was asked for something else: that, and nothing else."""

import pytest

from packedesm import config as configuration
from packedesm.cli import main
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.input_files import present_files
from packedesm.esm2.model_files import regression_file
from packedesm.files import read_record
from packedesm.outputs import needs
from packedesm.paths import Paths
from packedesm.results.request import Request
from tests.commands import the_line
from tests.esm2.checkpoint_files import SMALL


@pytest.fixture
def model(tmp_path):
    """A model with the regression of its contact head beside it."""
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, SMALL, seed=1)
    write_random_regression(regression_file(path), SMALL, seed=1)
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQR\n")
    return path


def request(model, *outputs: str) -> Request:
    asked = {"fasta": str(model.with_name("in.fasta")), "model": str(model), "outputs": [*outputs]}
    return Request.of(configuration.resolve(asked), present_files(model, "auto", needs(outputs)))


@pytest.mark.parametrize("finished", [True, False])
def test_contacts_that_are_asked_for_besides_make_no_other_model(model, finished):
    mean, both = request(model, "mean"), request(model, "mean", "contacts")
    for now, before in ((mean, both), (both, mean)):
        (said,) = now.differences(before, finished=finished)
        assert said.startswith("outputs was")
    assert both.differences(request(model, "mean", "contacts"), finished=finished) == []


def test_another_regression_is_told_by_its_path_and_another_model_as_such(model):
    before = request(model, "mean", "contacts")
    write_random_regression(regression_file(model), SMALL, seed=2)
    (said,) = request(model, "mean", "contacts").differences(before, finished=True)
    assert said == f"{regression_file(model)} is another one, which contacts come from"
    assert request(model, "mean").differences(request(model, "mean"), finished=True) == []
    write_random_checkpoint(model, SMALL, seed=2)
    found = request(model, "mean", "contacts").differences(before, finished=True)
    assert found == ["the model is another one", said]


def test_what_is_finished_stands_when_the_regression_is_gone(model, tmp_path, capsys):
    out = tmp_path / "out"
    run = ["embed", str(tmp_path / "in.fasta"), "-o", str(out), "--model", str(model)]
    run += ["--outputs", "mean,contacts"]
    assert main(run) == 0
    written = read_record(Paths(out).manifest)["written"]
    regression = regression_file(model).rename(tmp_path / "moved.pt")
    assert main(run) == 0
    assert "nothing to be done" in capsys.readouterr().out
    assert main([*run[:-1], "mean"]) == 2
    assert "another request (outputs was" in the_line(capsys.readouterr().err)
    write_random_regression(regression_file(model), SMALL, seed=2)
    assert main(run) == 2
    assert "which contacts come from" in the_line(capsys.readouterr().err)
    regression.replace(regression_file(model))
    assert main(run) == 0
    assert read_record(Paths(out).manifest)["written"] == written
