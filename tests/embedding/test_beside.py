"""Work beside the jobs: it goes on meanwhile, is waited for, and never outlives whom it is for."""

import logging
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from packedesm import pipeline
from packedesm.cli import main
from packedesm.embedding import beside as module
from packedesm.embedding.beside import beside
from packedesm.files import read_record
from packedesm.paths import Paths
from packedesm.reference.vectors import REST
from tests.commands import Command, bits
from tests.forks import CONTEXT, Forked


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Processes from one that has imported everything: as spawned ones, but sooner."""
    monkeypatch.setattr(module, "_CONTEXT", CONTEXT)


def write_when_told(folder: Path) -> None:
    (folder / "begun").write_text(str(os.getpid()))
    wait_for(folder / "go on")
    logging.getLogger("some").info("it goes on")
    (folder / "done").touch()


def fail() -> None:
    raise RuntimeError("no luck")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def ended(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_work_goes_on_beside_the_block_and_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    with beside(partial(write_when_told, tmp_path), "the work"):
        wait_for(tmp_path / "begun")
        assert not (tmp_path / "done").exists()
        (tmp_path / "go on").touch()
    assert (tmp_path / "done").exists()
    assert "the work: it goes on" in caplog.messages
    assert ended(int((tmp_path / "begun").read_text()))


def test_a_block_that_ends_early_ends_the_work(tmp_path):
    with pytest.raises(KeyError), beside(partial(write_when_told, tmp_path), "the work"):
        wait_for(tmp_path / "begun")
        raise KeyError
    assert ended(int((tmp_path / "begun").read_text()))


def test_work_that_fails_is_told_and_disturbs_nobody(caplog):
    with beside(fail, "the work"):
        pass
    assert "the work: RuntimeError: no luck" in caplog.messages


def test_where_no_process_can_be_started_the_block_goes_on(monkeypatch, caplog):
    def refuse(_process):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(CONTEXT.Process, "start", refuse)
    with beside(fail, "the work"):
        pass
    assert "the work: no process can be started: Resource temporarily unavailable" in caplog.text


def be_killed(folder: Path) -> None:
    with beside(partial(write_when_told, folder), "the work"):
        wait_for(folder / "begun")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_work_of_a_process_that_is_killed_ends(tmp_path):
    assert Forked(be_killed, tmp_path).wait(60) == -signal.SIGKILL
    worker = int((tmp_path / "begun").read_text())
    deadline = time.monotonic() + 30
    while not ended(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_rest_of_the_reference_is_computed_while_a_device_embeds(
    eight, tmp_path, checkpoints, quiet, monkeypatch
):
    """As on a machine with a GPU: this one has no idle threads, and is told that it has one."""
    run = Command(eight, tmp_path / "out", checkpoints, **{"verify-sequences": 7})
    monkeypatch.setattr(pipeline, "_idle_threads", lambda *_run: 1)
    merge_shards, seen = pipeline.merge_shards, []

    def waiting(paths: Paths, *more: object) -> None:
        wait_for(paths.reference(REST))
        seen.extend(read_record(paths.reference(REST))["proteins"])
        merge_shards(paths, *more)

    monkeypatch.setattr(pipeline, "merge_shards", waiting)
    assert main(run.arguments) == 0
    assert len(seen) == 3
    assert read_record(run.out.verification)["sequences"] == 7
    assert bits(run.out) == quiet
