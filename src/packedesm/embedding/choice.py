"""What ``dtype`` ``auto`` or ``int8`` came to: a run's first job says it, the others adopt it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from packedesm.errors import Damaged
from packedesm.files import TEMPORARY, read_record, write_record


@dataclass(frozen=True)
class Choice:
    """A number format of the computation, who chose it, and why."""

    dtype: str
    reason: str
    kind: str  # of the device, cuda or cpu
    device: str  # its name
    float_products: tuple[str, ...] = ()  # see `packedesm.options.EmbedPlan`
    host: str = platform.node()

    def in_words(self) -> str:
        """Return format and origin."""
        kept = f" without {' and '.join(self.float_products)}" if self.float_products else ""
        return f"{self.dtype}{kept}, chosen on {self.device} of {self.host}"


class RunChoice:
    """The choice of all jobs of one sample that are asked for the same.

    It is a file in `folder`, which appears whole and once. Where jobs do not share the folder each
    chooses for itself, and the merge refuses shards of two formats.

    Parameters
    ----------
    folder
        Of the choices of one sample.
    asked
        What the jobs are asked for, as plain values: all that decides vectors, the shard apart.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        text = json.dumps(asked, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def read(self) -> Choice | None:
        """Return what a job has chosen, None if none has, or if the file is damaged."""
        try:
            content = read_record(self.path)
            found = {field.name: content[field.name] for field in fields(Choice)}
            return Choice(**{**found, "float_products": tuple(found["float_products"])})
        except (FileNotFoundError, Damaged, KeyError):
            return None

    def forget(self) -> None:
        """Give the choice up: the next job chooses."""
        self.path.unlink(missing_ok=True)

    def say(self, choice: Choice) -> Choice:
        """Write a choice if no other job has; return the one that holds."""
        if (before := self.read()) is not None:
            return before
        own = self.path.with_name(f"{TEMPORARY}{os.getpid()}.{self.path.name}")
        write_record(own, asdict(choice))
        try:
            os.link(own, self.path)
        except FileExistsError:
            if self.read() is None:  # it is damaged; a whole one was said meanwhile, and stays
                own.replace(self.path)
        except OSError:  # a file system without links, which leaves a race
            own.replace(self.path)
        finally:
            own.unlink(missing_ok=True)
        return self.read() or choice
