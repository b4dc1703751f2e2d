"""Run `packedesm embed` in a process of its own."""

import re
import subprocess
from pathlib import Path

from packedesm.cli import main
from packedesm.esm2.registry import TINY
from packedesm.files import file_digest
from packedesm.paths import Paths
from tests.forks import Forked
from tests.number_format import NUMBER_FORMAT
from tests.workflow import BIN


class Command:
    """`packedesm embed` of one FASTA file into one folder."""

    def __init__(self, fasta: Path, out: Path, checkpoints: Path, **options) -> None:
        self.out = Paths(out)
        options = {
            **{"model": TINY, "checkpoints": checkpoints, "token-budget": 256, "commit-packs": 1},
            **{"max-length": 100, "verify-sequences": 2},
            **NUMBER_FORMAT,
            **options,
        }
        flags = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
        self.arguments = ["embed", str(fasta), "-o", str(out), *flags]

    def start(self, *more: str, fork: bool = True) -> subprocess.Popen | Forked:
        """Start it; forked from a process that has imported everything, or as a user does."""
        if fork:
            return Forked(main, [*self.arguments, *more])
        command = [str(BIN / "packedesm"), *self.arguments, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes)

    def run(self, *more: str, fork: bool = True) -> tuple[int, str, str]:
        """Run it to its end; return exit status, standard output and error."""
        process = self.start(*more, fork=fork)
        out, error = process.communicate(timeout=120)
        return process.returncode, out, error


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return digest and time of change of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (file_digest(path), path.stat().st_mtime_ns) for path in files}


def bits(paths: Paths) -> dict[str, str]:
    """Return the digests of the files that hold vectors and rows."""
    return {path.name: file_digest(path) for path in (paths.array("mean"), paths.index)}


def the_line(error: str) -> str:
    """Return the one line that the command says of an error."""
    (line,) = [line for line in error.splitlines() if line.startswith("packedesm: ")]
    assert "Traceback" not in error
    return line


def tracebacks(printed: str) -> list[str]:
    """Return the tracebacks but those of a Python that was interrupted while it imports."""
    found = re.findall(r"^Traceback .*\n(?:[ \t].*\n|\n)*.*", printed, re.MULTILINE)
    importing = re.compile(r"^ +(from \S+ )?import .*KeyboardInterrupt", re.MULTILINE | re.DOTALL)
    return [text for text in found if not importing.search(text)]
