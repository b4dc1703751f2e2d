"""Folders that cannot be written to, and disks that are full; nothing is left behind."""

import errno
import os
from pathlib import Path

import pytest

from packedesm.doctor import examine
from packedesm.doctor.examine import Run
from packedesm.doctor.places import place
from packedesm.doctor.probe import Answer
from packedesm.esm2.registry import DEMO, TINY


def said(folder: Path, needed: int = 0, *, vital: bool = True):
    return place("results", folder, needed, "do this", vital=vital)


def test_a_folder_with_room_is_well_and_stays_as_it_was(tmp_path):
    assert said(tmp_path).status == "ok"
    found = said(tmp_path / "new" / "er")
    assert found.status == "ok" and found.said.endswith("not made yet")
    assert found.facts["writable"] and found.facts["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left on the disk"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_takes_nothing_is_told(tmp_path, monkeypatch, number, words):
    def refuse(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    found = said(tmp_path)
    assert found.status == "fault" and found.said == f"{tmp_path}: {words}"
    assert said(tmp_path, vital=False).status == "note"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "not to be written to"])
def test_a_place_that_can_hold_nothing_is_told(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    folder = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "out",
        "dangling link": tmp_path / "link",
        "not to be written to": Path("/proc/out"),
    }[kind]
    found = said(folder)
    assert found.status == "fault" and str(folder) in found.said and found.advice == "do this"
    assert not found.facts["writable"]


def test_a_disk_with_too_little_room_says_how_much_is_wanted(tmp_path):
    found = said(tmp_path, 10**18)
    assert found.status == "fault" and found.said.endswith("1,000,000,000.0 GB wanted")


class Read:
    """A process that has told this of the models."""

    def __init__(self, *facts: dict) -> None:
        self._answer = Answer([*facts], None)

    def answer(self, _seconds) -> Answer:
        return self._answer


@pytest.mark.parametrize(("model", "status"), [(DEMO, "note"), ("esm2_t6_8M_UR50D", "fault")])
def test_a_damaged_model_matters_if_it_is_the_one_that_is_asked_for(tmp_path, model, status):
    run = Run(tmp_path, model, str(tmp_path), "auto", digests=False)
    damaged = {
        **{"model": "esm2_t6_8M_UR50D", "path": "x.pt", "digest": "not read", "bytes": 15},
        "fault": "x.pt: md5 is 1, expected 2; delete it and run `packedesm fetch ...`",
    }
    (finding,) = examine._models(run, Read(damaged), missing=False)
    assert finding.status == status
    assert finding.said == "x.pt: md5 is 1, expected 2"
    assert finding.advice == "delete it and run `packedesm fetch ...`"


def test_a_model_that_is_not_there_is_wanted_and_so_is_its_room(tmp_path):
    run = Run(tmp_path, "esm2_t33_650M_UR50D", str(tmp_path / "file" / "ck"), "auto", digests=False)
    (tmp_path / "file").write_text("")
    (finding,) = examine._models(run, Read(), missing=True)
    assert finding.status == "note" and "packedesm fetch esm2_t33_650M_UR50D" in finding.advice
    _results, checkpoints, _measured = examine._disk(run, missing=True)
    assert checkpoints.status == "fault"
    _results, checkpoints, _measured = examine._disk(run, missing=False)
    assert checkpoints.status == "note"
    untrained = Run(tmp_path, TINY, str(tmp_path), "auto", digests=False)
    (finding,) = examine._models(untrained, Read(), missing=True)
    assert finding.status == "ok"
