"""What is promised of every run holds in int8, too.

A few of the promises, in every run of the tests; ``make test-exhaustive`` lets the tests of all of
them run in int8 (`tests.number_format`).
"""

import signal
from pathlib import Path

import numpy as np
import pytest

from packedesm.embedding.record import ShardRun
from packedesm.files import read_record
from tests.commands import Command, bits
from tests.esm2.test_kernels import HERE
from tests.jobs import Sample, first_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cpu,
    pytest.mark.skipif(HERE == "DEFAULT", reason="no kernel is for a CPU without AVX2"),
]
PACKS = {"dtype": "int8", "token_budget": 300, "commit_packs": 1, "max_length": 120}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    """Forty records, two of them once more."""
    path = first_records(uniprot_500, 40, tmp_path_factory.mktemp("input") / "some.fasta")
    records = path.read_text().split("\n>")
    again = [f"again{row}\n{records[row].partition(chr(10))[2].strip()}" for row in (7, 21)]
    path.write_text("\n>".join([*records, *again]).rstrip() + "\n")
    return path


def mean(sample: Sample) -> np.ndarray:
    return np.load(sample.paths.shard_array(0, "mean"))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, fasta) -> np.ndarray:
    """What a job gives that nothing happens to."""
    sample = Sample(tmp_path_factory.mktemp("quiet") / "sample", fasta, **PACKS)
    sample.run()
    assert ShardRun.read(sample.paths.shard_run(0)).plan.dtype == "int8"
    return mean(sample)


def test_a_job_that_is_killed_again_and_again_gives_the_same_bits(tmp_path, fasta, quiet):
    sample = Sample(tmp_path / "sample", fasta, **PACKS)
    for attempt in (1, 2, 3):
        process = sample.start()
        sample.wait_for_packs(process, attempt, 3)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    log = sample.run()
    assert "kept from earlier attempts" in log
    np.testing.assert_array_equal(mean(sample), quiet)


def test_packs_that_memory_does_not_hold_are_split_without_a_changed_bit(tmp_path, fasta, quiet):
    sample = Sample(tmp_path / "sample", fasta, **PACKS)
    sample.run(faults={"memory": 200})  # the proteins that int8 is chosen with take 176 tokens
    assert ShardRun.read(sample.paths.shard_run(0)).replanned_packs > 0
    np.testing.assert_array_equal(mean(sample), quiet)


def test_copies_and_their_windows_have_the_bits_of_their_own_pass(tmp_path, fasta):
    found = []
    for deduplicate in ("true", "false"):
        asked = {"dtype": "int8", "deduplicate": deduplicate}
        asked |= {"long-sequences": "window", "window-overlap": 30}
        run = Command(fasta, tmp_path / deduplicate, tmp_path, **asked)
        status, _, error = run.run()
        assert status == 0, error
        assert read_record(run.out.verification)["passed"]
        found.append(bits(run.out)["mean.npy"])
    assert found[0] == found[1]
