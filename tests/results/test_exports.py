"""Exports as files: whole or not there, in their place, and nothing else is touched."""

import importlib.util
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from packedesm.cli import main
from packedesm.esm2.registry import TINY
from packedesm.files import TEMPORARY, file_digest
from packedesm.paths import Paths
from packedesm.results.exports.source import Source
from packedesm.results.folder import start_over
from tests.commands import state_of, the_line
from tests.forks import Forked
from tests.results.conftest import MAX_LENGTH

FORMATS = ("h5", "skbio", "parquet")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(arguments: list[str], capsys, status: int = 2) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == status
    return the_line(capsys.readouterr().err)


# Their place


def test_exports_lie_in_a_folder_of_the_results_with_a_record(own):
    before = state_of(own)
    for name in FORMATS:
        assert main(["export", str(own), "--format", name]) == 0
    files = names(own / "exports")
    assert {"per_protein.h5", "per_residue.h5", "per_protein.parquet"} <= files
    assert {"mean.embed.h5", "residue.embed.h5", "mean.embed.h5.ids.tsv"} <= files
    record = json.loads((own / "exports" / "h5.json").read_text())
    kinds = ("per_protein", "per_residue")
    made = {f"{kind}{end}" for kind in kinds for end in (".h5", ".h5.ids.tsv")}
    assert set(record["files"]) == made
    shutil.rmtree(own / "exports")
    assert state_of(own) == before


def test_a_place_may_be_a_file_or_a_folder(own, tmp_path, capsys):
    before = state_of(own)
    command = ["export", own, "--format", "h5"]
    assert main([*map(str, command), "--arrays", "mean", "-o", str(tmp_path / "new" / "x.h5")]) == 0
    assert names(tmp_path / "new") == {"x.h5", "x.h5.ids.tsv"}
    assert main([*map(str, command), "-o", str(tmp_path / "folder")]) == 0
    assert len(names(tmp_path / "folder")) == 4
    assert "remove it, or name another" in refused([*command, "-o", tmp_path / "folder"], capsys)
    line = refused([*command, "-o", tmp_path / "both.h5"], capsys)
    assert "is per_protein.h5, per_residue.h5; name a folder" in line
    assert "lies in a folder of results" in refused([*command, "-o", own / "x.h5"], capsys)
    assert not (tmp_path / "both.h5").exists()
    assert state_of(own) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--format", "h5", "--arrays", "logits"],
            "'logits' was not made; these results hold mean",
        ),
        (["--format", "h5", "--keys", "name"], "knows id, accession, biotrainer, not 'name'"),
        (["--format", "parquet", "--arrays", "residue"], "format parquet holds no residue"),
        (["--format", "skbio", "--fasta", "gone.fasta"], "gone.fasta: cannot be read"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(own, arguments, words, capsys):
    before = state_of(own)
    assert words in refused(["export", own, *arguments], capsys)
    assert state_of(own) == before
    assert not (own / "exports").exists()


def test_an_unknown_format_is_told_with_those_there_are(own, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(own), "--format", "xlsx"])
    assert "'h5'" in capsys.readouterr().err
    config = ["embed", "x.fasta", "-o", "out", "--exports", "h5,xlsx"]
    assert "'xlsx' is not allowed; give one of h5, skbio" in refused(config, capsys)


def test_what_is_not_installed_is_told_with_the_command(own, capsys, monkeypatch):
    find = importlib.util.find_spec
    without = "packedesm.results.exports.formats.find_spec"
    monkeypatch.setattr(without, lambda name: None if name == "h5py" else find(name))
    line = refused(["export", own, "--format", "h5"], capsys)
    assert "need h5py; pip install 'packedesm'" in line
    fasta = json.loads((own / "manifest.json").read_text())["config"]["fasta"]
    run = ["embed", fasta, "-o", own.parent / "new", "--exports", "h5", "--model", TINY]
    assert "pip install" in refused(run, capsys)


def test_an_array_that_is_not_as_it_was_written_is_not_exported(own, capsys):
    array = np.load(own / "mean.npy")
    array[3, 5] += 1
    np.save(own / "mean.npy", array)
    assert "mean.npy: is not as it was written" in refused(
        ["export", own, "--format", "h5"], capsys, 1
    )
    assert not (own / "exports").exists()


def test_what_does_not_read_back_is_not_kept(own, capsys, monkeypatch):
    at = Source.at
    monkeypatch.setattr(Source, "at", lambda *arguments: at(*arguments) + 1)
    for name in FORMATS:
        line = refused(["export", own, "--format", name], capsys, 1)
        assert "does not read back as it should (row 0 has other numbers)" in line
        assert not (own / "exports").exists()


# Interrupted


def slow_export(arguments: list[str]) -> int:
    """Run the command with a pause after the first record; the file is open then."""
    records, blocks = Source.records, Source.blocks

    def slowly(of):
        def iterate(self, *arguments):
            for number, found in enumerate(of(self, *arguments)):
                yield found
                time.sleep(600 * (number == 0))

        return iterate

    Source.records, Source.blocks = slowly(records), slowly(blocks)
    if "parquet" in arguments or "skbio" in arguments:
        from packedesm.results.exports import parquet

        parquet._GROUP_BYTES = 4 * 4 * 64
    return main(arguments)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_killed_export_leaves_nothing_but_what_the_next_removes(own, name, number):
    before = state_of(own)
    assert main(["export", str(own), "--format", name]) == 0
    undisturbed = {path.name: file_digest(path) for path in (own / "exports").iterdir()}
    shutil.rmtree(own / "exports")
    process = Forked(slow_export, ["export", str(own), "--format", name])
    wait_for(process, own, "*.*")
    other = Path(own / "exports" / f"{TEMPORARY}of-another")
    process.send_signal(number)
    process.communicate(timeout=60)
    left = names(own / "exports") if (own / "exports").exists() else set()
    if number == signal.SIGKILL:
        assert len(left) == 1 and left.pop().startswith(TEMPORARY)
    else:
        assert not left and process.returncode == 128 + signal.SIGTERM
    other.mkdir(parents=True)  # not of an export: it has no lock
    assert main(["export", str(own), "--format", name]) == 0
    other.rmdir()
    made = {path.name: file_digest(path) for path in (own / "exports").iterdir()}
    assert made == undisturbed
    shutil.rmtree(own / "exports")
    assert state_of(own) == before


def test_an_export_that_still_runs_is_left_alone_by_another(own):
    process = Forked(slow_export, ["export", str(own), "--format", "h5"])
    try:
        wait_for(process, own, "*.h5")
        assert main(["export", str(own), "--format", "parquet"]) == 0
        assert [*own.glob(f"exports/{TEMPORARY}*/*.h5")]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)


def wait_for(process: Forked, own: Path, pattern: str) -> None:
    """Wait until a process writes the file of an export."""
    deadline = time.monotonic() + 60
    while not [*own.glob(f"exports/{TEMPORARY}*/{pattern}")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def limited_export(limit: int, arguments: list[str]) -> int:
    """Run the command where files may have so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return main(arguments)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("limit", [1500, 2500, 5000])
def test_no_room_for_a_file_is_one_line_at_whatever_moment(own, name, limit):
    before = state_of(own)
    process = Forked(limited_export, limit, ["export", str(own), "--format", name])
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert "ulimit -f" in the_line(error)
    assert state_of(own) == before
    assert not (own / "exports").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(own, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        for name in FORMATS:
            line = refused(["export", own, "--format", name, "-o", disk / "made"], capsys, 1)
            assert "made: no space is left on the disk" in line
            assert not names(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# With a run


@pytest.fixture
def embed(own, exporting):
    """Return a function that runs the command whose results `own` are, with some exports."""

    def run(exports: str | None, *more: str) -> int:
        config = json.loads((own / "manifest.json").read_text())["config"]
        options = {"outputs": "mean,cls,residue", "output-dtype": "float16", "model": TINY}
        options |= {"max-length": MAX_LENGTH, "checkpoints": config["checkpoints"]}
        flags = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
        flags += ["--exports", exports] if exports else []
        return main(["embed", config["fasta"], "-o", str(own), *flags, *more])

    return run


def test_exports_asked_for_later_are_all_that_is_made(own, embed, capsys):
    before = state_of(own)
    assert embed("parquet") == 0
    assert "exported parquet" in capsys.readouterr().out
    assert names(own / "exports") == {"parquet.json", "per_protein.parquet"}
    assert embed("parquet,h5") == 0
    assert "exported h5" in capsys.readouterr().out
    made = state_of(own)
    assert embed("parquet,h5") == 0 and embed(None) == 0
    assert capsys.readouterr().out.count("nothing to be done") == 2
    assert state_of(own) == made and before.items() <= made.items()


def test_an_export_that_is_gone_or_of_special_keys_is_made_anew(own, embed, capsys):
    assert main(["export", str(own), "--format", "h5", "--keys", "accession"]) == 0
    with h5py.File(own / "exports" / "per_protein.h5") as file:
        assert "P12345" in file
    assert embed("h5") == 0
    with h5py.File(own / "exports" / "per_protein.h5") as file:
        assert "sp|P12345|ONE_HUMAN" in file
    (own / "exports" / "per_residue.h5").unlink()
    capsys.readouterr()
    assert embed("h5") == 0
    assert "exported h5" in capsys.readouterr().out
    assert (own / "exports" / "per_residue.h5").exists()


def test_force_removes_exports_and_not_what_others_put_beside_them(own):
    for name in FORMATS:
        assert main(["export", str(own), "--format", name]) == 0
    thesis = own / "exports" / "thesis.txt"
    thesis.write_text("years of work")
    start_over(Paths(own))
    assert names(own) == {"exports"} and names(own / "exports") == {"thesis.txt"}


def test_a_link_in_place_of_the_folder_is_not_followed(own, tmp_path, capsys, embed):
    (tmp_path / "precious").mkdir()
    (own / "exports").symlink_to(tmp_path / "precious")
    assert "is a link or a file" in refused(["export", own, "--format", "h5"], capsys)
    assert embed("h5") == 2
    assert not names(tmp_path / "precious")


# Memory


MADE_UP = (60_000, 1280)
BOUNDED = """
import sys
from pathlib import Path
from packedesm.cli import main
status = main(["export", sys.argv[1], "--format", sys.argv[2], "-o", sys.argv[3]])
said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(status, int(said["VmHWM"].split()[0]) // 1024)  # what is inherited is not counted
"""


@pytest.fixture(scope="module")
def many(made_once, exporting) -> Path:
    """Made-up results of many records: 150 MB of vectors."""
    from tests.results.more_arrays import made_up

    return made_once("many", lambda folder: made_up(exporting / "out", folder, *MADE_UP)) / "out"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak")
@pytest.mark.parametrize("name", ["h5", "parquet"])
def test_memory_does_not_grow_with_the_vectors(many, tmp_path, tell, name):
    run = [sys.executable, "-c", BOUNDED, str(many), name, str(tmp_path / "made")]
    start = time.monotonic()
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    status, peak = map(int, done.stdout.split()[-2:])
    assert status == 0, done.stderr
    tell(f"export of {MADE_UP[0]} vectors as {name}: {peak} MB, {time.monotonic() - start:.1f} s")
    assert peak < 400
