"""One part in a process of its own; what it has found so far is in a file at any moment."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packedesm.errors import UserError, first_line
from packedesm.files import write_json


@dataclass
class Task:
    """What a part is to measure, where and until when."""

    device: str  # cuda or cpu
    model: str | None
    scratch: Path  # a folder of checkpoints and temporary files
    end: float  # on time.monotonic
    found: Path  # JSON
    cut: bool = field(default=False, init=False)  # whether the time did not suffice
    result: dict[str, Any] = field(default_factory=dict, init=False)  # as saved last

    def in_time(self) -> bool:
        """Tell whether something new may be started."""
        self.cut |= time.monotonic() > self.end
        return not self.cut

    def save(self, result: dict[str, Any]) -> None:
        """Keep what is known so far."""
        self.result = result
        self.write(finished=False)

    def write(self, **state: Any) -> None:
        """Write the result, if there is one, and how far the part is."""
        write_json(self.found, state | ({"result": self.result} if self.result else {}))


def main() -> None:
    """Run the part that is named."""
    options = parser().parse_args()
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    task = Task(
        device=options.device,
        model=options.model,
        scratch=options.scratch,
        end=time.monotonic() + options.seconds,
        found=options.found,
    )
    reason = run(options.module, task)
    task.write(finished=reason is None, reason=reason)


def run(module: str, task: Task) -> str | None:
    """Run a part; return why it is not finished, None if it is."""
    try:
        importlib.import_module(module).measure(task)
    except UserError as error:
        return f"not run: {error}"
    except Exception as error:
        return f"failed: {type(error).__name__}: {first_line(error)}"
    return "not run to its end: the time was up" if task.cut else None


def told(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, or why it could not be: a row that fails costs no other."""
    try:
        return measured()
    except Exception as error:  # memory that does not suffice, a kernel that does not compile
        return {"reason": first_line(error)}


def end_with_parent(parent: int) -> None:
    """End this process and its group when `parent` has ended, however it did."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("module")
    made.add_argument("--device", required=True)
    made.add_argument("--model")
    made.add_argument("--scratch", type=Path, required=True)
    made.add_argument("--seconds", type=float, required=True)
    made.add_argument("--found", type=Path, required=True)
    return made


if __name__ == "__main__":
    main()
