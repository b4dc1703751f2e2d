"""Look at this machine as a run would find it; no network is asked, and nothing is left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packedesm.doctor.devices import devices
from packedesm.doctor.findings import FAULT, NOTE, OK, Finding
from packedesm.doctor.places import gigabytes, place
from packedesm.doctor.probe import Probe
from packedesm.doctor.software import cluster, software
from packedesm.esm2.measured import measured_folder
from packedesm.esm2.registry import DIGESTS, MODELS, checkpoint_folder, locate

logger = logging.getLogger(__name__)

_ROOM = 1_000_000_000  # bytes: vectors of a few hundred thousand proteins
_FILE = 1.2 * 4  # bytes of a published file for each weight, its head and names included
_SECONDS = 120  # a disk with torch or models on it, or a driver, that takes longer hangs


@dataclass(frozen=True)
class Run:
    """The run that is asked about."""

    output: Path  # of results
    model: str  # a name or a path
    checkpoints: str  # folder, or auto
    device: str
    digests: bool  # whether large files are read to compare their digests


def examine(run: Run) -> list[Finding]:
    """Return what is found, part by part.

    Raises
    ------
    UserError
        If the model is neither a name nor a file or folder.
    """
    missing = not locate(run.model, run.checkpoints).exists()
    if run.digests:
        logger.info("every file of a model is read to its end, which takes a second for each GB")
    asked = Probe("machine", run.device)
    read = Probe("checkpoints", run.checkpoints, run.model, "yes" if run.digests else "no")
    found = [*software(), *_disk(run, missing), *cluster(), *_models(run, read, missing)]
    found += devices(asked.answer(_SECONDS))
    order = ["Software", "GPU", "CPU", "Disk", "Models", "Cluster"]
    return sorted(found, key=lambda finding: order.index(finding.part))


def _disk(run: Run, missing: bool) -> Iterator[Finding]:
    advice = "free space or raise the limit, or give another folder: -o, in the workflow `results`"
    yield place("results", run.output, _ROOM, advice, vital=True)
    folder = checkpoint_folder(run.checkpoints)
    needed = int(MODELS[run.model].parameters * _FILE) if missing else 0
    advice = "give another folder with --checkpoints, or free some space"
    if not missing:
        advice = f"to download models {advice}; those that are there can be used"
    yield place("checkpoints", folder, needed, advice, vital=missing)
    advice = "runs work; what they measure on a GPU is measured again each time. Set XDG_CACHE_HOME"
    try:
        yield place("measured", measured_folder(), 0, advice, vital=False)
    except RuntimeError as error:  # no home
        yield Finding("Disk", "measured", str(error), advice, NOTE)


def _models(run: Run, read: Probe, missing: bool) -> Iterator[Finding]:
    if missing:
        size = gigabytes(MODELS[run.model].parameters * _FILE)
        said = f"{run.model} is not there yet; the first run gets it, up to {size}"
        if run.model in DIGESTS:
            advice = (
                f"without a network: `packedesm fetch {run.model}` on a machine that has one, then "
                f"copy the file to {locate(run.model, run.checkpoints)}"
            )
            yield Finding("Models", run.model, said, advice, NOTE, {"there": False})
        else:
            yield Finding("Models", run.model, said, facts={"there": False})
    answer = read.answer(None if run.digests else _SECONDS)
    for fact in answer.told:
        if "model" in fact:
            yield _model(fact, vital=fact["model"] == run.model)
    if answer.broken:
        advice = "look at that file; a checkpoint that is damaged is deleted and fetched again"
        yield Finding("Models", "reading", answer.broken, advice, NOTE)


def _model(fact: dict[str, Any], *, vital: bool) -> Finding:
    if "fault" in fact:
        said, _, advice = fact["fault"].rpartition("; ")
        amiss = FAULT if vital else NOTE
        return Finding("Models", fact["model"], said, advice, amiss, {"there": True, **fact})
    digest = {
        "published": "its digest is the published one",
        "none published": "no digest is published of it",
        "not read": "it fits its size; to compare its digest add --digests",
    }[fact["digest"]]
    said = f"{gigabytes(fact['bytes'])}, {digest}"
    return Finding("Models", fact["model"], said, None, OK, {"there": True, **fact})
