"""Where the command writes: closed streams, odd folders, limits of the system; one line, always."""

import ctypes
import io
import os
import random
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from packedesm.cli import main
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.registry import TINY
from packedesm.paths import Paths
from tests.commands import Command, bits, state_of, the_line
from tests.forks import Forked
from tests.results.made_up import write_results
from tests.workflow import BIN, ROOT

PACKEDESM = BIN / "packedesm"


@pytest.fixture(scope="module")
def embed(eight, checkpoints):
    """Return a function that gives the arguments of a command for a folder."""

    def arguments(out: Path, source: Path = eight) -> list[str]:
        return Command(source, out, checkpoints).arguments

    return arguments


def shell(line: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run packedesm with `arguments` in a line of a shell, in place of its word PACKEDESM."""
    command = subprocess.list2cmdline([str(PACKEDESM), *arguments])
    return subprocess.run(
        ["bash", "-c", line.replace("PACKEDESM", command)],
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    )


@pytest.fixture
def full(tmp_path):
    """A device that is always full; some containers lack it."""
    if Path("/dev/full").is_char_device():
        return "/dev/full"
    device = tmp_path / "full"
    done = subprocess.run(["mknod", device, "c", "1", "7"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no /dev/full, and no right to make one: {done.stderr.strip()}")
    return device


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "> FULL", "2> FULL"])
def test_results_stand_whoever_reads_what_is_said(tmp_path, embed, full, streams):
    done = shell(f"PACKEDESM {streams.replace('FULL', str(full))}", embed(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert Paths(tmp_path / "out").manifest.exists()
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", ["models", "--help", "embed --help", "--version"])
def test_a_text_that_cannot_be_written_is_told_by_the_exit_status(command, full):
    done = shell(f"PACKEDESM {command} > {full}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if command == "models":
        assert done.stderr == "packedesm: standard output: No space left on device\n"


CLOSED = ["packedesm: standard output: is closed; send it to a file or a program"]


@pytest.mark.parametrize(
    ("command", "said"), [("models", CLOSED), ("neighbours OUT", CLOSED), ("--version", [])]
)
def test_an_answer_that_leads_nowhere_is_told_by_the_exit_status(tmp_path, command, said):
    """Where a file is named it holds the answer, whatever is closed."""
    out = write_results(tmp_path / "out", np.eye(2, dtype=np.float32))
    arguments = command.replace("OUT", str(out)).split()
    done = shell("PACKEDESM >&-", arguments)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("packedesm")] == said
    if str(out) in arguments:
        table = tmp_path / "nearest.tsv"
        assert shell("PACKEDESM >&- 2>&-", [*arguments, "-o", str(table)]).returncode == 0
        assert table.read_text().count("\n") == 3


def test_a_reader_that_leaves_early_is_no_fault():
    done = shell("PACKEDESM models | head -1")
    assert done.stdout.startswith("name")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty; name a folder"),
        ("dangling link", "is a link to nothing"),
        ("file", "is a file, not a folder"),
        ("below a file", "file: is a file, not a folder"),
        ("link to itself", "link"),
        ("long name", "too long"),
        ("long path", "too long"),
        ("control character", "cannot be seen"),
        ("back from nowhere", "leads back from a folder that is not there"),
        ("home of nobody", "names a home that is not known"),
        ("where runs work", "leads into a folder .work"),
    ],
)
def test_a_place_that_cannot_hold_results_is_one_line(tmp_path, embed, kind, words):
    out = tmp_path / "out"
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mean.npy").write_text("years of work")
    if kind == "dangling link":
        out.symlink_to(tmp_path / "nothing")
    elif kind == "link to itself":
        out.symlink_to(out)
    place = {
        "empty": "",
        "file": file,
        "below a file": file / "out",
        "long name": tmp_path / ("x" * 300),
        "long path": tmp_path / "/".join(["x" * 200] * 30),
        "control character": tmp_path / "a\nb",
        "back from nowhere": tmp_path / "nothing" / ".." / "mine",
        "home of nobody": "~nobody_of_this_name/out",
        "where runs work": tmp_path / "mine" / ".work" / "out",
    }.get(kind, out)
    before = state_of(tmp_path)
    done = subprocess.run([PACKEDESM, *embed(place)], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr and "fault of packedesm" not in done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert state_of(tmp_path) == before
    assert not (tmp_path / "nothing").exists()


def test_a_working_directory_that_is_gone_is_one_line(tmp_path, embed):
    folder = tmp_path / "gone"
    folder.mkdir()
    # Python itself does not start if a relative path leads to modules.
    gone = f"export PYTHONPATH={ROOT / 'src'}; cd {folder} && rmdir {folder}"
    done = shell(f"{gone} && PACKEDESM", embed(Path("out")))
    assert done.returncode == 2
    assert "the working directory is gone" in the_line(done.stderr)


def test_a_name_that_the_terminal_cannot_show_is_written_out(tmp_path, embed, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(embed(tmp_path / "zü")) == 0
    terminal.seek(0)
    assert r"z\xfc holds mean.npy" in terminal.read()


def test_a_link_to_a_folder_is_that_folder_and_stays_as_it_was(tmp_path, embed):
    folder = tmp_path / "real"
    folder.mkdir(mode=0o2750)
    folder.chmod(0o2750)
    (folder / ".DS_Store").write_text("of the system")
    (tmp_path / "link").symlink_to(folder)
    done = subprocess.run([PACKEDESM, *embed(tmp_path / "link")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink() and Paths(folder).manifest.exists()
    assert folder.stat().st_mode & 0o7777 == 0o2750
    assert (folder / ".DS_Store").read_text() == "of the system"


def test_a_bad_input_leaves_no_folder_that_was_made_for_it(tmp_path, embed):
    bad = tmp_path / "bad.fasta"
    bad.write_text(">a\nMK\n>b\nM1\n")
    done = subprocess.run([PACKEDESM, *embed(tmp_path / "a" / "b" / "c", bad)], capture_output=True)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fasta"]


@pytest.mark.parametrize(
    "kind", ["results", "FASTA", "checkpoints", "weights", "folder of weights", "manifest"]
)
def test_what_the_user_may_not_read_or_enter_is_one_line(tmp_path, embed, kind):
    """As another user's; root may read it too, unless that right is taken away."""
    closed = tmp_path / "closed"
    arguments = embed(tmp_path / "out")
    if kind == "manifest":
        subprocess.run([PACKEDESM, *arguments], check=True)
        closed = Paths(tmp_path / "out").manifest
    elif kind in ("FASTA", "weights"):
        closed.write_text(">a\nMKV\n")
    else:
        closed.mkdir()
    if kind == "folder of weights":
        (closed / "config.json").write_text("{}")
    if kind == "results":
        arguments = embed(closed / "out")
    elif kind == "FASTA":
        arguments = embed(tmp_path / "out", closed)
    elif kind != "manifest":
        arguments += ["--checkpoints" if kind == "checkpoints" else "--model", str(closed)]
    if os.getuid() == 0:
        os.chown(closed, 65534, 65534)
    mode = closed.stat().st_mode
    closed.chmod(0o700 if os.getuid() == 0 else 0)
    try:
        done = subprocess.run(
            [PACKEDESM, *arguments],
            capture_output=True,
            text=True,
            preexec_fn=_forbid_what_only_root_may,
        )
    finally:
        closed.chmod(mode)
    assert done.returncode == 2
    assert str(closed) in the_line(done.stderr) and "Permission denied" in the_line(done.stderr)
    assert (tmp_path / "out").exists() == (kind == "manifest")


def _forbid_what_only_root_may() -> None:
    """Take from the program that follows the right to pass over permissions (capabilities(7))."""
    drop, (override, search) = 24, (1, 2)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if os.getuid() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        assert prctl(drop, override) == prctl(drop, search) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("kilobytes", [2, 20, 120])
def test_a_limit_on_the_size_of_files_is_one_line_and_the_same_command_goes_on(
    tmp_path, embed, checkpoints, kilobytes
):
    arguments = [*embed(tmp_path / "out"), "--outputs", "mean,residue"]
    prepare(TINY, str(checkpoints))  # files of the model are larger
    limited = Forked(limited_command, kilobytes * 1024, arguments)
    _, error = limited.communicate(timeout=120)
    assert limited.returncode == 1, error
    assert "ulimit -f" in the_line(error)
    assert main(arguments) == 0


def limited_command(limit: int, arguments: list[str]) -> int:
    """Run the command where files may have so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return main(arguments)


@pytest.mark.parametrize(
    "pair", [*range(3), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(3, 23))]
)
def test_of_two_commands_at_once_one_ends_right_and_nothing_is_lost(
    tmp_path, embed, quiet, pair, capsys
):
    chance = random.Random(pair)
    bad = tmp_path / "bad.fasta"
    bad.write_text(">a\nMK\n>b\nM1\n")
    good = embed(tmp_path / "out")
    other = embed(tmp_path / "out", bad) if pair % 2 else good
    commands = [other, good] if chance.random() < 0.5 else [good, other]
    # Without the seconds that imports take, the second may come at any step of the first.
    first = Forked(main, commands[0])
    time.sleep(chance.choice((0, chance.uniform(0, 3))))
    second = Forked(main, commands[1])
    ends = {}
    for process, arguments in ((first, commands[0]), (second, commands[1])):
        _, error = process.communicate(timeout=120)
        assert "Traceback" not in error
        if process.returncode:
            taken = "another packedesm works in this folder" in the_line(error)
            assert taken or arguments is other is not good
        ends[process.returncode == 0] = arguments
    if ends.get(True) is None:  # the good one found the folder taken by the bad one
        assert pair % 2
        assert main(good) == 0
    assert bits(Paths(tmp_path / "out")) == quiet
    assert main(good) == 0
    assert "nothing to be done" in capsys.readouterr().out
