"""Finished results that shall have another report get it, and keep everything else."""

import os
import shutil
from pathlib import Path

import pytest

import packedesm
from packedesm.cli import main
from packedesm.files import read_record, write_record
from packedesm.paths import Paths
from tests.commands import Command, state_of, the_line

NOTHING = "nothing to be done"
TABLE = "id\tkind\tside\n{0}\tkinase\tleft\n{1}\tlipase\tright\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, eight, checkpoints) -> Path:
    """The folder of results with an export."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(Command(eight, out, checkpoints, exports="h5").arguments) == 0
    return out


@pytest.fixture
def again(finished, eight, checkpoints, tmp_path):
    """Return a function that makes a command for a copy of them, with further options."""
    shutil.copytree(finished, tmp_path / "out", copy_function=shutil.copy2)

    def make(**report) -> Command:
        options = {f"report-{key}": value for key, value in report.items()}
        return Command(eight, tmp_path / "out", checkpoints, exports="h5", **options)

    return make


@pytest.fixture
def table(finished, tmp_path) -> Path:
    path = tmp_path / "table.tsv"
    path.write_text(TABLE.format(*packedesm.open(finished).ids))
    return path


def changed(before: dict, folder: Path) -> set[str]:
    """Return the names of the files that were written to since, or are new or gone."""
    now = state_of(folder)
    files = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    return {Path(path).relative_to(folder).as_posix() for path in files}


def drawn(paths: Paths) -> set[str]:
    return {path.name for path in (*paths.drawn(), paths.manifest)}


def test_another_report_changes_no_other_file(again, table, capsys):
    run = again(annotations=table)
    root, before = run.out.root, state_of(run.out.root)
    config = read_record(run.out.manifest)["config"]
    for options, shown in (
        ({"annotations": table}, "The vectors by kind"),
        ({"annotations": table, "column": "side"}, "The vectors by side"),
    ):
        capsys.readouterr()
        assert main(again(**options).arguments) == 0
        assert "drew a new report (" in capsys.readouterr().out
        assert shown in run.out.report.read_text()
        assert changed(before, root) == drawn(run.out)
        written = state_of(root)
        assert main(again(**options).arguments) == 0
        assert NOTHING in capsys.readouterr().out
        assert state_of(root) == written
    now = packedesm.open(root).manifest["config"]
    assert now == config | {"report": {"map": "pca", "annotations": str(table), "column": "side"}}
    assert main(again().arguments) == 0
    assert "The vectors by" not in run.out.report.read_text()


def test_a_table_of_other_content_is_noticed_whatever_its_age(again, table, capsys):
    run = again(annotations=table)
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    times = table.stat()
    table.write_text(table.read_text().replace("kinase", "ligase"))
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(run.arguments) == 0
    assert f"{table} is another one" in capsys.readouterr().out
    assert "ligase" in run.out.report.read_text()
    assert changed(before, run.out.root) == drawn(run.out)
    before = state_of(run.out.root)
    table.write_text("no table")
    assert main(run.arguments) == 2
    assert "must name two columns" in the_line(capsys.readouterr().err)
    table.unlink()  # the report stands without it
    assert main(run.arguments) == 0
    assert NOTHING in capsys.readouterr().out
    assert state_of(run.out.root) == before


def test_whoever_is_stopped_while_the_report_is_drawn_draws_it_again(
    again, table, monkeypatch, capsys
):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("packedesm.commands.embed.record_redrawn", stopped)
    assert main(again(annotations=table).arguments) == 130
    monkeypatch.undo()
    for options in ({"annotations": table}, {}):
        run = again(**options)
        assert main(run.arguments) == 0
        assert ("The vectors by kind" in run.out.report.read_text()) == bool(options)
    capsys.readouterr()
    assert main(run.arguments) == 0
    assert NOTHING in capsys.readouterr().out
    assert not run.out.work.exists()


@pytest.mark.parametrize("name", ["report.html", "packedesm_time_mqc.json"])
@pytest.mark.parametrize("damage", ["gone", "zeros"])
def test_a_report_that_is_gone_or_damaged_costs_no_vector(again, name, damage):
    run = again()
    before = state_of(run.out.root)
    path = run.out.root / name
    content = path.read_bytes()
    path.write_bytes(bytes(9))
    if damage == "gone":
        path.unlink()
    assert main(run.arguments) == 0
    assert path.read_bytes() == content
    assert changed(before, run.out.root) == drawn(run.out)


def test_a_report_of_another_request_is_not_drawn(again, table, capsys):
    run = again(annotations=table)
    before = state_of(run.out.root)
    assert main([*run.arguments, "--dtype", "bfloat16"]) == 2
    said = the_line(capsys.readouterr().err)
    assert "another request (dtype was 'auto', is 'bfloat16');" in said
    assert state_of(run.out.root) == before


def test_results_that_kept_too_little_for_another_report_stand_and_say_so(again, table, capsys):
    run = again(annotations=table)
    manifest = read_record(run.out.manifest)
    del manifest["report"]
    write_record(run.out.manifest, manifest)
    before = state_of(run.out.root)
    assert main(run.arguments) == 2
    assert "ask for the report as it was" in the_line(capsys.readouterr().err)
    assert main(again().arguments) == 0
    assert NOTHING in capsys.readouterr().out
    assert state_of(run.out.root) == before
