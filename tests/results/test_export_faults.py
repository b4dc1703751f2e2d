"""Exports of many files, killed in the middle and on a full disk; and what is told before."""

import os
import signal
import subprocess
import time

import pytest

from packedesm.errors import Fault
from packedesm.files import file_digest
from packedesm.results.exports.folders import tell_size
from packedesm.results.exports.source import Source
from tests.commands import the_line
from tests.forks import Forked
from tests.results.exported import copied, export

FORMATS = ("pt", "plm-blast", "h5ad", "faiss")


@pytest.fixture(scope="module")
def results(tmp_path_factory, short_results):
    return copied(short_results, tmp_path_factory.mktemp("faults"))


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def slowly(results, arguments):
    """Run an export that takes a while for each of its records or blocks."""
    from packedesm.progress import Progress

    add = Progress.add

    def slow(self, amount):
        add(self, amount)
        time.sleep(0.5)

    Progress.add = slow
    return export(results, *arguments)


@pytest.mark.parametrize("format", ["pt", "plm-blast"])
def test_a_folder_that_is_killed_in_the_middle_is_not_there_and_the_next_run_cleans(
    results, tmp_path, format
):
    before = digests(results)
    place = tmp_path / "there" / format
    arguments = ["--format", format, "-o", str(place.parent)]
    process = Forked(slowly, results, arguments)
    suffix = {"pt": ".pt", "plm-blast": ".emb"}[format]
    deadline = time.monotonic() + 60
    while len(list(place.parent.glob(f".packedesm-*/**/*{suffix}"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = place.parent.iterdir()
    assert left.name.startswith(".packedesm-")
    assert export(results, *arguments) == 0
    table = [place.with_name(f"{format}.ids.tsv")]
    assert sorted(place.parent.iterdir()) == sorted([place, *table])
    undisturbed = tmp_path / "undisturbed"
    assert export(results, *arguments[:-1], str(undisturbed)) == 0
    assert digests(place) == digests(undisturbed / format)
    assert digests(results) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds so little; give its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def unwarned(results, arguments):
    """Run an export that has not looked how much room there is."""
    from packedesm.results.exports import esm_extract, faiss, plm_blast

    for module in (esm_extract, faiss, plm_blast):
        module.tell_size = lambda *arguments: None
    return export(results, *arguments)


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills_in_the_middle_is_one_line_and_leaves_nothing(
    results, small_disk, format
):
    before = digests(results)
    room = 64 - {"faiss": 4, "h5ad": 40}.get(format, 32)
    (small_disk / "others").write_bytes(bytes(room << 10))
    process = Forked(unwarned, results, ["--format", format, "-o", str(small_disk)])
    _, error = process.communicate(timeout=60)
    # Not that of a signal: HDF5 that cannot close a file ends its process.
    assert process.returncode == 1, error
    line = the_line(error)
    assert f"{small_disk}: no space is left on the disk" in line
    assert [path.name for path in small_disk.iterdir()] == ["others"]
    assert digests(results) == before


@pytest.mark.parametrize("format", ["pt", "plm-blast", "faiss"])
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    results, small_disk, format, capsys
):
    (small_disk / "others").write_bytes(bytes(63 << 10))
    assert export(results, "--format", format, "-o", str(small_disk)) == 1
    line = the_line(capsys.readouterr().err)
    assert line.startswith(f"packedesm: {small_disk}: ")
    assert "are to be written, and there is room for" in line
    assert [path.name for path in small_disk.iterdir()] == ["others"]


def test_more_files_than_there_are_inodes_are_told_before(tmp_path):
    disk = os.statvfs(tmp_path)
    if not disk.f_files:
        pytest.skip("this file system counts no inodes")
    folder = tmp_path / "work" / "pt"
    folder.mkdir(parents=True)
    with pytest.raises(Fault, match="the file system takes"):
        tell_size(folder, disk.f_favail + 1, -(disk.f_favail + 1) * disk.f_frsize)
    tell_size(folder, 1, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_what_does_not_read_back_is_not_kept(results, tmp_path, format, capsys, monkeypatch):
    at = Source.at
    monkeypatch.setattr(Source, "at", lambda *arguments: at(*arguments) + 1)
    assert export(results, "--format", format, "-o", str(tmp_path / "there")) == 1
    line = the_line(capsys.readouterr().err)
    assert "does not read back as it should (row 0 has other numbers)" in line
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_results_give_the_same_bytes(results, tmp_path, format):
    for name in ("one", "two"):
        assert export(results, "--format", format, "-o", str(tmp_path / name)) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
