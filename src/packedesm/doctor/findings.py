"""What was found, one thing at a time: for people as a screen, for programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from packedesm.errors import printable

FORMAT = 1  # of the JSON, see docs/cluster.md
OK, NOTE, FAULT = "ok", "note", "fault"
_NAME = 20  # width of the column of names


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    part, name
        What it is, and the part of the screen that it belongs to.
    said
        What was found, in a line.
    advice
        What to do; None only where `status` is ``ok``.
    status
        ``ok``; ``note``, a run works but not all that could; or ``fault``, a run does not work.
    facts
        The same in plain values, for programs.
    """

    part: str
    name: str
    said: str
    advice: str | None = None
    status: str = OK
    facts: dict[str, Any] = field(default_factory=dict)


def works(findings: Sequence[Finding]) -> bool:
    """Tell whether a run would work."""
    return all(finding.status != FAULT for finding in findings)


def screen(findings: Sequence[Finding]) -> str:
    """Return the findings for people, those of one part together."""
    lines: list[str] = []
    for part, those in groupby(findings, key=lambda finding: finding.part):
        lines += ["", part] if lines else [part]
        for finding in those:
            mark = {OK: "    ", NOTE: "note", FAULT: "!!! "}[finding.status]
            lines.append(f"{mark}  {finding.name:<{_NAME}}{finding.said}")
            if finding.advice:
                lines.append(f"{'':<{_NAME + 6}}-> {finding.advice}")
    end = "a run would work here" if works(findings) else "a run would not work here: see !!!"
    notes = sum(finding.status == NOTE for finding in findings)
    return "\n".join(map(printable, [*lines, "", f"{end}; notes: {notes}" if notes else end]))


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings for programs."""
    content = {
        "format": FORMAT,
        "works": works(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2, allow_nan=False)
