"""What only torch can tell, asked in a process of its own: if that crashes or hangs, it is told.

It prints a JSON object a line, and before each thing that it does what that is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from signal import Signals
from typing import Any, NamedTuple

from packedesm.errors import first_line

_COMMAND = (sys.executable, "-P", "-m", "packedesm.doctor.probe")
_DOING = "doing"


class Answer(NamedTuple):
    """What a process has told, and why it told no more; None if that was all."""

    told: list[dict[str, Any]]
    broken: str | None

    def of(self, key: str) -> Any:
        """Return what was told under `key`, None if it was not."""
        return next((line[key] for line in self.told if key in line), None)


class Probe:
    """A process that was asked; more than one may be at work at once."""

    def __init__(self, kind: str, *arguments: str, **variables: str) -> None:
        self._refused: str | None = None
        self._started = time.monotonic()
        try:
            self._process = _started([kind, *arguments], os.environ | variables)
        except OSError as error:  # a limit on processes, or on memory
            self._refused = f"no process could be started ({error.strerror})"

    def answer(self, seconds: float | None) -> Answer:
        """Wait until it ends, or has had so long since its start, and return what it told."""
        if self._refused:
            return Answer([], self._refused)
        late = False
        left = seconds and max(0.1, self._started + seconds - time.monotonic())
        try:
            printed, _ = self._process.communicate(timeout=left)
        except subprocess.TimeoutExpired as error:
            printed, late = error.output or b"", True
        finally:
            self._process.kill()  # and not waited for: what hangs in a driver cannot be ended
        told, doing = [], "starting Python"
        for line in printed.splitlines():
            try:
                fact = json.loads(line)
            except ValueError:  # what a library prints, or half a line
                continue
            if isinstance(fact, dict):
                doing = fact.get(_DOING, doing)
                told.append(fact)
        status = self._process.returncode
        if late:
            return Answer(told, f"no answer within {seconds:.0f} s while {doing}")
        if not status:
            return Answer(told, None)
        failed = next((fact["failed"] for fact in told if "failed" in fact), None)
        how = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
        return Answer(told, f"{failed or how} while {doing}")


def _started(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def main(arguments: Sequence[str]) -> int:
    """Print what a function of `packedesm.doctor.trials` tells; return the exit status."""
    kind, *given = arguments
    _tell({_DOING: "importing torch"})
    try:
        # Here, after the line that says so: an import can end the process.
        from packedesm.doctor.trials import KINDS

        for fact in KINDS[kind](given):
            _tell(fact)
    except Exception as error:
        _tell({"failed": f"{type(error).__name__}: {first_line(error)}"})
        return 1
    return 0


def _tell(fact: dict[str, Any]) -> None:
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
