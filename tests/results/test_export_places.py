"""Where exports are put: beside what others have there, all at once, and again after a kill."""

import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

import packedesm
from packedesm.cli import main
from packedesm.esm2.registry import TINY
from packedesm.files import TEMPORARY
from packedesm.paths import Paths
from packedesm.results.exports import place
from packedesm.results.exports.export import export_missing
from packedesm.results.folder import refuse_foreign
from tests.commands import state_of, the_line
from tests.forks import Forked
from tests.results.exported import export


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(capsys, results, *arguments) -> str:
    capsys.readouterr()
    assert export(results, *map(str, arguments)) == 2
    return the_line(capsys.readouterr().err)


H5 = {f"per_{kind}.h5{end}" for kind in ("protein", "residue") for end in ("", ".ids.tsv")}


def test_formats_with_files_of_one_stem_have_a_table_each(own, tmp_path):
    results = packedesm.open(own)
    assert export_missing(results, ["h5", "parquet"]) == ["h5", "parquet"]
    assert names(own / "exports") == H5 | {"per_protein.parquet", "h5.json", "parquet.json"}
    assert export_missing(results, ["h5", "parquet"]) == []
    for format in ("h5", "parquet", "h5ad"):
        keys = ["--keys", "accession"] if format == "h5" else []
        path = str(tmp_path / f"x.{format}")
        assert export(own, "--format", format, *keys, "--arrays", "mean", "-o", path) == 0
    files = {"x.h5", "x.h5.ids.tsv", "x.parquet", "x.h5ad", "x.h5ad.ids.tsv"}
    assert names(tmp_path) - {"own"} == files
    assert "P12345\n" in (tmp_path / "x.h5.ids.tsv").read_text()


@pytest.mark.parametrize("format", ["h5", "parquet"])  # one with a table, one without
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_lies_in_the_place_of_a_table_is_not_touched(own, tmp_path, capsys, format, kind):
    for folder in (tmp_path / "there", own / "exports"):
        folder.mkdir()
        table = folder / f"per_protein.{format}.ids.tsv"
        {
            "file": lambda path: path.write_text("years of work"),
            "folder": lambda path: path.mkdir(),
            "link": lambda path: path.symlink_to("gone"),
        }[kind](table)
        at = [] if folder.parent == own else ["-o", folder]
        assert f"{table}: is there already" in refused(capsys, own, "--format", format, *at)
        assert names(folder) == {table.name}
        assert kind != "file" or table.read_text() == "years of work"


def test_an_export_replaces_its_own_files_and_no_others(own, capsys):
    assert export(own, "--format", "h5") == 0
    assert export(own, "--format", "h5", "--keys", "accession", "--arrays", "cls") == 0
    made = H5 | {"per_protein.cls.h5", "per_protein.cls.h5.ids.tsv", "h5.json"}
    assert names(own / "exports") == made
    assert export(own, "--format", "h5") == 0
    assert names(own / "exports") == made
    other = own / "exports" / "per_protein.parquet"
    other.write_text("years of work")
    assert f"{other}: is there already" in refused(capsys, own, "--format", "parquet")
    assert other.read_text() == "years of work"


def test_what_comes_to_lie_there_meanwhile_is_not_replaced(own, tmp_path, capsys, monkeypatch):
    other = tmp_path / "there" / "per_residue.h5"
    sync = "packedesm.results.exports.export.sync"
    monkeypatch.setattr(sync, lambda _moves: other.write_text("years of work"))
    line = refused(capsys, own, "--format", "h5", "-o", other.parent)
    assert f"{other}: is there already" in line
    assert names(other.parent) == {other.name} and other.read_text() == "years of work"


@pytest.mark.parametrize("below", ["", ".", "new", "new/x.h5", "x.h5", "exports", "exports/x.h5"])
def test_no_export_lies_among_the_results(own, capsys, below):
    before = state_of(own)
    arguments = ["--format", "h5", "--arrays", "mean", "-o", own / below]
    assert "lies in a folder of results" in refused(capsys, own, *arguments)
    assert state_of(own) == before


def test_an_export_blocks_no_other_results(exporting, own, capsys):
    line = refused(capsys, exporting / "out", "--format", "h5", "-o", own)
    assert "lies in a folder of results" in line
    refuse_foreign(Paths(own))


@pytest.mark.parametrize("format", ["pt", "h5"])
def test_advice_on_a_place_is_advice_that_helps(own, tmp_path, capsys, format):
    line = refused(capsys, own, "--format", format, "-o", tmp_path / "x.file")
    assert "name a folder with -o" in line
    assert ("one array with --arrays" in line) == (format == "h5")


def test_the_last_layer_may_be_asked_for_by_its_number(own, tmp_path):
    results = packedesm.open(own)
    path = tmp_path / "x.h5"
    name = f"mean.layer{results.depth}"
    assert export(own, "--format", "h5", "--arrays", name, "-o", str(path)) == 0
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["P1"], results.array(name)[0])


def test_formats_that_cannot_be_are_refused_before_others_are_made(own, monkeypatch):
    monkeypatch.setattr(packedesm.Results, "arrays", ["mean"])
    with pytest.raises(packedesm.UserError, match="format plm-blast holds residue"):
        export_missing(packedesm.open(own), ["h5", "plm-blast"])
    assert not (own / "exports").exists()


def test_keys_of_biotrainer_warn_of_sequences_that_were_changed(checkpoints, own, tmp_path, caplog):
    fasta, results = tmp_path / "in.fasta", tmp_path / "out"
    letters = ("MKTAYIA", "mktayia", "MK*TAYI", "MKTAYIJ", "MKTAYIAK*", "MKTAYIX")
    fasta.write_text("".join(f">r{row}\n{text}\n" for row, text in enumerate(letters)))
    options = ["--model", TINY, "--checkpoints", str(checkpoints)]
    assert main(["embed", str(fasta), "-o", str(results), *options]) == 0
    assert export(results, "--format", "h5") == 0
    assert "was changed when" not in caplog.text
    assert export(results, "--format", "h5", "--keys", "biotrainer") == 0
    assert "4 records with a sequence that was changed when it was read" in caplog.text


# Between two files


def stopped(arguments: list[str], number: int, after: int) -> int:
    """Run the command; the process sends itself a signal when so many files are in place."""
    replace, count = Path.replace, 0

    def counted(self, target):
        nonlocal count
        found = replace(self, target)
        if self.parent.name.startswith(TEMPORARY) and Path(target).suffix != ".json":
            count += 1
            if count == after:
                os.kill(os.getpid(), number)
        return found

    Path.replace = counted
    return main(arguments)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("at", ["exports", "folder"])
def test_an_export_that_is_stopped_between_two_files_is_whole_or_goes_on(
    own, tmp_path, at, number, after
):
    folder = tmp_path / "there" if at == "folder" else own / "exports"
    more = ["-o", str(folder)] if at == "folder" else []
    whole = H5 | (set() if more else {"h5.json"})
    arguments = ["export", str(own), "--format", "h5", *more]
    process = Forked(stopped, arguments, number, after)
    process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert names(folder) == whole
        return
    assert process.returncode == -number
    assert len(names(folder) & H5) == after
    if not more:
        assert main(["export", str(own), "--format", "parquet"]) == 0
        assert names(folder) & H5 == set()
        whole |= {"per_protein.parquet", "parquet.json"}
    assert main(arguments) == 0
    assert names(folder) == whole


def test_what_is_not_what_was_moved_is_not_taken_back(own, tmp_path):
    folder = tmp_path / "there"
    arguments = ["export", str(own), "--format", "h5", "-o", str(folder)]
    process = Forked(stopped, arguments, signal.SIGKILL, 2)
    process.communicate(timeout=60)
    (folder / "per_protein.h5").write_text("years of work")
    place.remove_left_behind(folder)
    assert names(folder) == {"per_protein.h5"}


def test_a_failure_between_two_files_leaves_none(own, tmp_path, monkeypatch, capsys):
    folder, replace = tmp_path / "there", Path.replace

    def fails(self, target):
        if target.name == "per_residue.h5":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    assert export(own, "--format", "h5", "-o", str(folder)) == 1
    assert "no space is left" in the_line(capsys.readouterr().err)
    assert not folder.exists()
