"""Where commands write what -o names: one check for all of them, which says the same."""

from pathlib import Path

import numpy as np
import pytest

from packedesm.cli import main
from packedesm.files import write_record
from packedesm.paths import Paths
from packedesm.results.new_file import lies_in_results
from tests.commands import state_of, the_line
from tests.results.made_up import write_results

VALUES = np.eye(4, dtype=np.float32)
COMMANDS = {
    "export": ["--format", "h5", "--arrays", "mean"],
    "neighbours": ["--queries", "queries"],
    "variants": ["--mutations", "mutations.csv"],
}
IN_RESULTS = "lies in a folder of results; give another place with -o"
PLACES = {
    "mine.h5": "mine.h5: is there already; remove it, or name another with -o",
    "link.h5": "link.h5: is there already; remove it",
    "mine.h5/new.h5": "mine.h5: is a file, not a folder; name another with -o",
    "mine.h5/below/new.h5": "mine.h5: is a file, not a folder; name another with -o",
    "mine.h5/below": "mine.h5: is a file, not a folder; name another with -o",
    "results/mean.npy": IN_RESULTS,  # to remove that would be bad advice
    "results/new.h5": IN_RESULTS,
    "results/exports/new.h5": IN_RESULTS,
    "results/none/new.h5": IN_RESULTS,
    "other/new.h5": IN_RESULTS,
    "other/exports/new.h5": IN_RESULTS,
    "other/below/new.h5": IN_RESULTS,
    "other/manifest.json": IN_RESULTS,
    "into/new.h5": IN_RESULTS,  # a link to a folder in results
    "claimed/new.h5": IN_RESULTS,
    "unfinished/new.h5": IN_RESULTS,
    "workflow/sample/new.h5": IN_RESULTS,
    "workflow/waiting/new.h5": IN_RESULTS,
    "workflow/queued/new.h5": IN_RESULTS,
    "workflow/common/new.h5": IN_RESULTS,  # a link to where its samples keep what they share
    "loop/new.h5": "name another with -o",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with finished results, those of others, and runs that are not finished."""
    for name in ("results", "queries", "other"):
        write_results(tmp_path / name, VALUES)
    (tmp_path / "other" / "below").mkdir()
    (tmp_path / "mine.h5").write_text("years of work")
    (tmp_path / "link.h5").symlink_to("nowhere")
    (tmp_path / "into").symlink_to("other/below")
    (tmp_path / "loop").symlink_to("loop")
    begun = Paths(tmp_path / "claimed").lock
    begun.parent.mkdir(parents=True)
    begun.touch()
    write_record(Paths(tmp_path / "unfinished").request, {})
    write_record(Paths(tmp_path / "workflow").checkpoint, {})
    write_record(Paths(tmp_path / "workflow" / "sample").sharding, {})
    # Of a sample whose first step has just begun, or stands in a cluster's queue.
    Paths(tmp_path / "workflow" / "waiting").locks.mkdir(parents=True)
    Paths(tmp_path / "workflow" / "queued").shard_fasta(0).parent.mkdir(parents=True)
    (tmp_path / "workflow" / "common").symlink_to(".work")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, command: str, place: str) -> str:
    assert main([command, "results", *COMMANDS[command], "-o", place]) == 2
    return the_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_writes_takes_no_others_place(folder, capsys, command):
    before = state_of(folder), sorted(folder.rglob("*"))
    for place, said in PLACES.items():
        assert said in refused(capsys, command, place), place
    assert (state_of(folder), sorted(folder.rglob("*"))) == before


@pytest.mark.parametrize("command", ["neighbours", "variants"])
def test_a_file_lies_in_a_folder_that_is_there(folder, capsys, command):
    assert "none: is no folder; make it" in refused(capsys, command, "none/new.tsv")
    for place in (".", "queries"):
        line = refused(capsys, command, place)
        assert line.endswith("is there already, a folder; name another with -o")
    assert "(File name too long)" in refused(capsys, command, "n" * 300)


@pytest.mark.parametrize("place", ["other", "other/below", "unfinished"])
def test_a_folder_of_exports_is_none_of_results(folder, capsys, place):
    before = state_of(folder)
    assert IN_RESULTS in refused(capsys, "export", place)
    assert state_of(folder) == before


EMBEDDED = [
    *("results/new", "results/exports/new", "results/none/new", "other/below", "into/new", "into"),
    *("claimed/new", "unfinished/new", "workflow/sample/new", "workflow/sample/exports/new"),
]


@pytest.mark.parametrize("place", EMBEDDED)
def test_no_run_lies_in_the_folder_of_another(folder, capsys, place):
    (folder / "in.fasta").write_text(">a\nMKV\n")
    before = state_of(folder), sorted(folder.rglob("*"))
    assert main(["embed", "in.fasta", "-o", place]) == 2
    assert the_line(capsys.readouterr().err).endswith(f"{place}: {IN_RESULTS}")
    assert (state_of(folder), sorted(folder.rglob("*"))) == before


def test_one_that_an_earlier_version_began_there_goes_on(folder, capsys):
    (folder / "in.fasta").write_text(">a\nMKV\n")
    paths = Paths("results/new")
    write_record(paths.request, {})
    assert main(["embed", "in.fasta", "-o", "results/new"]) == 2
    assert IN_RESULTS in the_line(capsys.readouterr().err)
    write_record(paths.shard_run(0), {})
    assert main(["embed", "in.fasta", "-o", "results/new"]) == 2
    assert "request.json: is damaged" in the_line(capsys.readouterr().err)


def test_beside_the_samples_of_the_workflow_there_is_room(folder):
    assert main(["neighbours", "results", "-o", "workflow/new.tsv"]) == 0
    assert (folder / "workflow" / "new.tsv").exists()
    assert not lies_in_results(folder / "workflow" / "new")
