"""Kill an embedding job at any moment, any number of times: the result is that of a quiet run."""

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from packedesm.cli import main
from packedesm.esm2.registry import DEMO, TINY
from packedesm.files import file_digest, read_json
from packedesm.paths import Paths
from packedesm.results.merge import merge_shards
from tests.jobs import Sample, first_records
from tests.workflow import BIN, snakemake, write_config

pytestmark = pytest.mark.slow

KILLS = 20
SEEDS = (1, pytest.param(2, marks=pytest.mark.exhaustive))
COMMIT_PACKS = 5
PACKS_PER_KILL = 7  # more than are committed at once, so that kills hit before and after it
BUDGET = 1024  # small packs, so that there are many
SMALLER = {"token_budget": 512, "max_length": 510}  # for the demo model, which takes its time


def commits(state):
    return list(state.glob("*.commit"))


def digests(paths: Paths) -> dict[str, str]:
    """Return what identifies the files that users read.

    Not their bytes: pytest explains for many minutes how two long byte strings differ.
    """
    return {path.name: file_digest(path) for path in (paths.array("mean"), paths.index)}


def published(sample) -> dict[str, str]:
    merge_shards(sample.paths, 1, ["mean"])
    return digests(sample.paths)


def make_sample(root: Path, fasta: Path, model: str, **config) -> Sample:
    return Sample(root, fasta, **{"model": model, "token_budget": BUDGET, **config})


def undisturbed(root: Path, fasta: Path, model: str, packs: int, **config) -> dict[str, str]:
    """Return what a job of more than so many packs publishes if nothing disturbs it."""
    sample = make_sample(root, fasta, model, **config)
    sample.run()
    run = read_json(sample.paths.shard_run(0))
    assert run["packs"] > packs
    assert (run["restarts"], run["recomputed_packs"]) == (0, 0)
    return published(sample)


@pytest.fixture(scope="module")
def many(tmp_path_factory, uniprot_500):
    """The first 250 records of the example: for a job that twenty kills do not bring to its end."""
    return first_records(uniprot_500, 250, tmp_path_factory.mktemp("input") / "many.fasta")


@pytest.fixture(scope="module")
def quiet_many(tmp_path_factory, many):
    root, packs = tmp_path_factory.mktemp("quiet_many"), KILLS * PACKS_PER_KILL
    return undisturbed(root, many, DEMO, packs, **SMALLER)


@pytest.fixture
def sample_many(tmp_path, many):
    return make_sample(tmp_path, many, DEMO, commit_packs=COMMIT_PACKS, **SMALLER)


@pytest.fixture(scope="module")
def half(tmp_path_factory, uniprot_500):
    """The first 250 records of the example: for jobs that are disturbed once or twice.

    With the smallest model. What is committed and taken over does not depend on the weights, and
    the 100 packs take long enough to be disturbed at a given one.
    """
    return first_records(uniprot_500, 250, tmp_path_factory.mktemp("input") / "half.fasta")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, half):
    return undisturbed(tmp_path_factory.mktemp("quiet"), half, TINY, 100)


@pytest.fixture
def sample(tmp_path, half):
    return make_sample(tmp_path, half, TINY, commit_packs=COMMIT_PACKS)


def check_published(sample, quiet):
    assert published(sample) == quiet
    packs = pd.read_csv(sample.paths.shard_packs(0), sep="\t")
    run = read_json(sample.paths.shard_run(0))
    assert packs["pack"].tolist() == list(range(run["packs"]))
    assert packs["records"].sum() == run["records"]
    assert not sample.state.exists()
    return run


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_twenty_kills_in_one_run_change_no_bit(sample_many, quiet_many, number, seed, tell):
    sample, chance = sample_many, random.Random(f"{number}-{seed}")
    recomputed = []
    for _ in range(KILLS):
        before = sample.journals()
        starting = chance.random() < 0.2
        process = sample.start(fork=not starting)
        if starting:  # libraries, weights, plan
            sample.wait_while_starting(len(before), chance.uniform(0, 3))
        else:
            # Few enough that twenty attempts do not reach the end of the job.
            sample.wait_for_packs(process, len(before) + 1, chance.randint(0, PACKS_PER_KILL))
            time.sleep(chance.uniform(0, 0.02))
        assert process.poll() is None, process.communicate(timeout=60)[1]
        process.send_signal(number)
        asked = time.monotonic()
        process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number)
        journals = sample.journals()
        finished = [pack for name in journals.keys() - before for pack in journals[name]]
        recomputed.append(len(set(finished) - sample.committed()))
        if number == signal.SIGTERM:
            assert time.monotonic() - asked < 10
            assert recomputed[-1] == 0
    assert max(recomputed) <= COMMIT_PACKS
    sample.run()
    run = check_published(sample, quiet_many)
    tell(f"{number.name}, seed {seed}: {KILLS} kills, packs to recompute per kill {recomputed}")
    assert run["recomputed_packs"] == sum(recomputed)
    assert 0 < run["restarts"] <= KILLS


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_jobs_on_one_shard_the_one_that_came_last_publishes(sample, quiet, seed):
    chance = random.Random(seed)
    first = sample.start("first")
    time.sleep(chance.uniform(0, 1))
    second = sample.start("second")
    ends = [process.communicate(timeout=120)[1] for process in (first, second)]
    codes = [first.returncode, second.returncode]
    assert sorted(codes) == [0, 1], ends
    loser = ends[codes.index(1)]
    assert "superseded by" in loser or "another process finished" in loser
    assert len(loser.strip().splitlines()) == 1
    check_published(sample, quiet)


def test_an_orphan_that_wakes_up_later_changes_nothing(sample, quiet):
    orphan = sample.start("orphan")
    sample.wait_for_packs(orphan, 1, 12)
    orphan.send_signal(signal.SIGSTOP)
    successor = sample.start("successor")
    sample.wait_for_packs(successor, 2, 12)
    committed = sample.committed()
    orphan.send_signal(signal.SIGCONT)
    _, error = orphan.communicate(timeout=60)
    assert orphan.returncode == 1
    assert "superseded by" in error
    assert committed <= sample.committed()
    assert successor.wait(120) == 0
    check_published(sample, quiet)


def test_an_orphan_that_wakes_up_after_all_is_done_publishes_nothing(sample, quiet):
    orphan = sample.start("orphan")
    sample.wait_for_packs(orphan, 1, 12)
    orphan.send_signal(signal.SIGSTOP)
    sample.run(name="successor")
    mean = sample.paths.shard_array(0, "mean")
    before = mean.stat().st_mtime_ns
    orphan.send_signal(signal.SIGCONT)
    _, error = orphan.communicate(timeout=60)
    assert orphan.returncode == 1
    assert "another process finished this shard" in error
    assert len(error.strip().splitlines()) == 1
    assert mean.stat().st_mtime_ns == before
    check_published(sample, quiet)


def test_times_of_all_attempts_add_up(sample, quiet):
    process = sample.start()
    sample.wait_for_packs(process, 1, 50)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    sample.run()
    run = check_published(sample, quiet)
    packs = pd.read_csv(sample.paths.shard_packs(0), sep="\t")
    finished = packs["finished_seconds"].to_numpy()
    assert (np.diff(finished) >= 0).all()
    assert run["restarts"] == 1
    assert (
        run["seconds"]["forward"]
        <= run["seconds"]["embedding"]
        == pytest.approx(finished[-1], rel=1e-4)
    )
    assert run["seconds"]["total"] > run["seconds"]["embedding"] + run["seconds"]["setup"]


def test_a_workflow_whose_job_is_killed_ends_as_if_nothing_had_been(tmp_path, quiet, half):
    config = {"token_budget": BUDGET, "commit_packs": COMMIT_PACKS, "shards": 1}
    config |= {"model": TINY, "verify": {"sequences": 4}}
    write_config(tmp_path, fasta=str(half), **config)
    paths = Paths(tmp_path / "results" / "half")
    with ThreadPoolExecutor(1) as background:
        workflow = background.submit(snakemake, tmp_path, "--retries", "3")
        for attempt in (1, 2):
            state = paths.shard_state(0)
            while len([*state.glob("attempt-*")]) < attempt or len(commits(state)) < 5 * attempt:
                assert not workflow.done(), workflow.result().stdout
                time.sleep(0.01)
            os.kill(read_json(state / "owner.json")["pid"], signal.SIGKILL)
        run = workflow.result()
    assert run.returncode == 0, run.stdout
    assert read_json(paths.shard_run(0))["restarts"] == 2
    assert digests(paths) == quiet
    assert paths.manifest.exists()
    assert "2 restarts" in paths.report.read_text()


def test_the_command_goes_on_where_it_was_interrupted(tmp_path, half):
    options = {"model": TINY, "checkpoints": tmp_path / "checkpoints", "shards": 2}
    options |= {"token-budget": BUDGET, "commit-packs": 1, "verify-sequences": 4}
    flags = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
    arguments = ["embed", str(half), *flags, "-o"]
    quiet, out = Paths(tmp_path / "quiet"), Paths(tmp_path / "out")
    assert main([*arguments, str(quiet.root)]) == 0
    command = [str(BIN / "packedesm"), *arguments]
    process = subprocess.Popen([*command, out.root], stderr=subprocess.PIPE, text=True)
    while not commits(out.shard_state(1)):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "SIGINT: stopping; what is finished is kept" in log
    assert "Traceback" not in log
    again = subprocess.run([*command, out.root], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "shard 0 is finished and kept" in again.stderr
    assert "kept from earlier attempts" in again.stderr
    assert digests(out) == digests(quiet)
    assert not out.work.exists()
