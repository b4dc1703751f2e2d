"""The command with several FASTA files, and with standard input: one sample, in this order."""

import gzip
import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import packedesm
from packedesm.cli import main
from packedesm.files import read_json
from tests.commands import Command, bits, state_of, the_line

A, B = ">a1\nMKTAYIAKQR\n>a2\nMKV\n", ">b1\nACDEFGHIK\n"


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Two good files and some that are not, by name."""
    texts = {
        "a": A,
        "b": B,
        "bad": ">b\nMKV\n>c\nM1V\n",
        "clash": ">x\nMKV\n>a2\nMKW\n",
        "empty": "",
    }
    found = {name: tmp_path / f"{name}.fasta" for name in texts}
    for name, text in texts.items():
        found[name].write_text(text)
    found["b"] = tmp_path / "b.fasta.gz"
    found["b"].write_bytes(gzip.compress(B.encode()))
    return found | {"folder": tmp_path, "missing": tmp_path / "missing.fasta"}


@pytest.fixture
def embed(tmp_path, checkpoints, capsys):
    """Return a function that embeds inputs in this order: exit status, and what was said."""

    def run(*inputs: object, out: str = "out", more: tuple[str, ...] = ()) -> tuple[int, str]:
        command = Command(Path("-"), tmp_path / out, checkpoints)
        head, *rest = command.arguments
        capsys.readouterr()
        status = main([head, *map(str, inputs), *rest[1:], *more])
        return status, "".join(capsys.readouterr())

    return run


@contextmanager
def standard_input(source: int) -> Iterator[None]:
    """Let this process read `source`, which is closed at the end, as its standard input."""
    kept = os.dup(0)
    os.dup2(source, 0)
    os.close(source)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def piped(text: str) -> int:
    source, target = os.pipe()
    os.write(target, text.encode())
    os.close(target)
    return source


def test_several_files_are_one_sample_in_their_order(tmp_path, files, embed):
    assert embed(files["b"], files["a"])[0] == 0
    both = tmp_path / "both.fasta"
    both.write_text(B + A)
    assert embed(both, out="whole")[0] == 0
    found, whole = (packedesm.open(tmp_path / out) for out in ("out", "whole"))
    assert list(found.ids) == ["b1", "a1", "a2"]
    assert (found.array("mean") == whole.array("mean")).all()
    manifest = read_json(tmp_path / "out" / "manifest.json")
    inputs = [entry["path"] for entry in manifest["request"]["inputs"]]
    assert inputs == manifest["config"]["fasta"] == [str(files["b"]), str(files["a"])]
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.index(files["b"].name) < report.index(files["a"].name)


def test_the_same_files_have_nothing_to_do_and_another_order_is_another_request(files, embed):
    assert embed(files["a"], files["b"])[0] == 0
    assert "nothing to be done" in embed(files["a"], files["b"])[1]
    for other in ((files["b"], files["a"]), (files["a"],)):
        status, said = embed(*other)
        assert status == 2 and "the FASTA is another one" in the_line(said)
    assert embed(files["b"], files["a"], more=("--force",))[0] == 0


def test_a_pipe_is_read_in_its_place(tmp_path, files, embed):
    with standard_input(piped(">piped\nMKW\n")):
        status, said = embed(files["b"], "-", files["a"])
    assert status == 0, said
    assert list(packedesm.open(tmp_path / "out").ids) == ["b1", "piped", "a1", "a2"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "standard input" in report and "/dev/stdin" not in report
    before = state_of(tmp_path / "out")
    with standard_input(piped(">piped\nMKW\n")):
        status, said = embed(files["b"], "-", files["a"])
    once = "(an input was read from standard input, which can be read only once)"
    assert status == 2 and once in the_line(said)
    status, said = embed(files["b"], files["a"])
    assert status == 2 and once in the_line(said)
    with standard_input(piped(">piped\nMKW\n")):
        status, said = embed(files["b"], "-", files["a"], more=("--force",))
    assert status == 2 and the_line(said).startswith("packedesm: standard input: can be read only")
    assert state_of(tmp_path / "out") == before


def test_a_file_as_standard_input_is_that_file(tmp_path, files, embed):
    """From its beginning, wherever it was read to, and again: for `--force` it is looked at."""
    for more, words in (((), "holds mean.npy"), ((), "nothing to be done"), (("--force",), "mean")):
        with standard_input(os.open(files["a"], os.O_RDONLY)):
            os.read(0, 5)
            status, said = embed("-", more=more)
        assert status == 0 and words in said
    assert embed(files["a"], out="named")[0] == 0
    found, named = (Command(files["a"], tmp_path / out, tmp_path).out for out in ("out", "named"))
    assert bits(found) == bits(named)


def test_a_socket_is_read(tmp_path, embed):
    """Some programs start others with one, and no path opens it."""
    import socket

    source, target = socket.socketpair()
    target.sendall(A.encode())
    target.close()
    with standard_input(source.detach()):
        status, said = embed("-")
    assert status == 0, said


def test_a_terminal_is_told(tmp_path, embed, caplog):
    own, terminal = pty.openpty()
    os.write(own, A.encode() + b"\x04")
    with standard_input(terminal):
        assert embed("-")[0] == 0
    os.close(own)
    assert "standard input is this terminal: paste FASTA" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("a missing", "missing.fasta: no such FASTA file"),
        ("a empty b", "empty.fasta: the file is empty"),
        ("folder a", "is a folder, not a FASTA file"),
        ("a bad b", "bad.fasta: record 2 'c' (line 3): character '1'"),
        ("a b a", "a.fasta: is given twice; give"),
        ("a clash", "'a2' ({a} record 2 and {clash} record 2)"),
        ("a -", "standard input: record 1 'p' (line 2): character '2'"),
        ("- -", "standard input: is given twice; give"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_its_file(tmp_path, files, embed, inputs, words):
    sources = [files.get(name, name) for name in inputs.split()]
    with standard_input(piped("\n>p\nM2\n")):
        status, said = embed(*sources)
    assert status == 2
    assert words.format(**files) in the_line(said)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_standard_input_too_is_given_twice(tmp_path, files, embed):
    with standard_input(os.open(files["a"], os.O_RDONLY)):
        status, said = embed(files["a"], "-")
    assert status == 2
    assert f"standard input: is given twice, as {files['a']} too" in the_line(said)


def test_a_closed_standard_input_is_told(tmp_path, embed, monkeypatch):
    """Whatever file has its number by then is not read."""
    monkeypatch.setattr("sys.stdin", None)
    with standard_input(piped(A)):
        status, said = embed("-")
    assert status == 2
    assert the_line(said).startswith("packedesm: standard input: is closed")


def test_force_gives_nothing_up_for_a_mistake_in_any_file(tmp_path, files, embed):
    assert embed(files["a"])[0] == 0
    before = state_of(tmp_path / "out")
    assert embed(files["a"], files["empty"], more=("--force",))[0] == 2
    assert state_of(tmp_path / "out") == before


def test_files_on_both_sides_of_an_option_are_explained(files, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["embed", str(files["a"]), "-o", "out", str(files["b"])])
    assert "FASTA files stand together" in capsys.readouterr().err
    for command in (["models", "x"], ["neighbours", "a", "b"], ["fetch", "a", "b"]):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"packedesm: error: unrecognized arguments: {command[-1]}"
