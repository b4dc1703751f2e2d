import gc
import logging
import sys
import time

import pytest
from tqdm import tqdm

from packedesm.progress import Progress, telling


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "packedesm.progress")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_every_interval_tells_rate_and_time_left(lines):
    with Progress("embedding", 1000, "residues", interval=0.05) as progress:
        for _ in range(10):
            time.sleep(0.02)
            progress.add(50)
        assert 2 <= len(lines()) <= 5
    last = lines()[-1]
    assert last.startswith("embedding: 500 of 1000 residues (50.0%), ")
    rate = float(last.split("), ")[1].split(" residues/s")[0])
    assert 500 < rate < 2500
    assert last.endswith("00:00 left")


def test_nothing_to_do_is_said_without_a_rate(lines):
    with Progress("embedding", 0, "residues"):
        pass
    assert lines()[-1].startswith("embedding: 0 of 0 residues")


def test_without_a_total_what_is_done_is_told(lines):
    with Progress("downloading", None, "bytes", before=5) as progress:
        progress.add(1000)
    assert lines()[-1].startswith("downloading: 1005 bytes, ")
    assert lines()[-1].endswith(" bytes/s")


def test_a_bar_that_a_signal_interrupts_while_it_is_made_says_nothing(monkeypatch):
    said = []

    def stop(*_arguments):
        raise SystemExit(143)

    monkeypatch.setattr(sys, "unraisablehook", said.append)
    monkeypatch.setattr(tqdm, "_get_free_pos", stop)
    with pytest.raises(SystemExit):
        Progress("embedding", 1, "residues")
    gc.collect()
    assert not said


def test_what_is_told_to_a_listener_is_all_that_is_done_and_nothing_is_logged(lines):
    told = []
    with telling(told.append), Progress("embedding", 100, "residues", 0, before=10) as progress:
        progress.add(5)
        progress.add(20)
    assert told == [10, 15, 35]
    assert not lines()
    with Progress("embedding", 100, "residues"):
        pass
    assert told == [10, 15, 35]
    assert lines()


def test_what_is_found_or_lost_is_counted_but_not_as_work_of_now(lines):
    with Progress("embedding", 1000, "residues") as progress:
        progress.found(400)
        time.sleep(0.1)
        progress.add(50)
        progress.found(-20)
    assert lines()[-1].startswith("embedding: 430 of 1000 residues (43.0%), ")
    assert 0 < float(lines()[-1].split("), ")[1].split(" residues/s")[0]) <= 500
