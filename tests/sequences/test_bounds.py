"""Reading takes bounded memory and time, whatever the input claims to be."""

import gzip
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from packedesm.sequences.pieces import MAX_RECORD_BYTES

MEGABYTE = 1 << 20
READ = """
import resource, sys
from packedesm.errors import UserError
from packedesm.sequences.fasta import read_blocks
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, residues, said = peak(), 0, ""
try:
    for block in read_blocks(sys.argv[1]):
        residues += sum(map(len, block.sequences))
except UserError as error:
    said = str(error)
used = resource.getrusage(resource.RUSAGE_SELF)
print(peak() - before, used.ru_utime + used.ru_stime, residues, said)
"""


def read(path: Path | str) -> tuple[int, float, int, str]:
    """Read a file in a process of its own: bytes and CPU seconds it took, residues, message."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert done.returncode == 0, done.stderr
    memory, seconds, residues, said = done.stdout.rstrip("\n").split(" ", 3)
    return int(memory), float(seconds), int(residues), said


def bomb(path: Path, start: bytes, filling: bytes, size: int = 3 << 30) -> Path:
    """Write gzip members that unpack to `start` and `size` bytes of filling."""
    block = 64 * MEGABYTE
    member = gzip.compress(filling * (block // len(filling)), 9)
    with path.open("wb") as handle:
        handle.write(gzip.compress(start))
        for _ in range(size // block):
            handle.write(member)
    return path


TOO_LONG = f"is longer than {MAX_RECORD_BYTES:,} bytes"


@pytest.mark.parametrize(
    ("start", "filling", "words"),
    [
        (b"", b"\0", r"is not FASTA: line 1 begins with '\x00"),
        (b"", b"\n", "begins with a megabyte of blanks"),
        (b"", b" ", "begins with a megabyte of blanks"),
        (b"", b"\r", TOO_LONG),
        (b">a\nMKV\n", b"\r", TOO_LONG),
        (b"", b"id,sequence\n", "is not FASTA: line 1 begins with 'id,sequence'"),
        (b">a\n", b"A", f"record 1 (line 1) {TOO_LONG}"),
        (b">a\nMKV\n>b\n", b"ACDEFGHI\n", f"record 2 (line 3) {TOO_LONG}"),
        (b">", b"a", TOO_LONG),
    ],
)
def test_a_bomb_ends_soon_and_takes_little_memory(tmp_path, start, filling, words):
    memory, seconds, _, said = read(bomb(tmp_path / "bomb.fasta.gz", start, filling))
    assert words in said
    assert memory <= 200 * MEGABYTE
    assert seconds <= 5  # one or two, start of the interpreter included


@pytest.mark.parametrize("path", ["/dev/zero", sys.executable])
def test_what_is_not_fasta_is_seen_at_its_beginning(path):
    memory, seconds, _, said = read(path)
    assert f"{path}: is not FASTA: line 1 begins with" in said
    assert memory <= 20 * MEGABYTE
    assert seconds <= 5


@pytest.mark.parametrize("line", [b"ACDEFGHIKL" * 6, b"acdefghikl" * 6, b"ACDEFGHIKL" * 100_000])
@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_a_residue_of_a_long_record_takes_three_bytes(tmp_path, line, place):
    lines = 60_000_000 // len(line)
    others = 0 if place == "first" else 3, 0 if place == "last" else 3
    path = tmp_path / "long.fasta"
    with path.open("wb") as handle:
        handle.write(b">other\nMKV\n" * others[0] + b">long\n")
        handle.writelines(line + b"\n" for _ in range(lines))
        handle.write(b">other\nMKV\n" * others[1])
    memory, _, residues, said = read(path)
    assert (residues, said) == (lines * len(line) + 3 * sum(others), "")
    assert memory <= 3 * residues + 20 * MEGABYTE
