"""What happens to jobs on a cluster: every run still ends by itself, with the same bits."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from packedesm.paths import Paths
from tests.slurm.cluster import output, succeeds, wait_until
from tests.slurm.runs import (
    MERGED,
    ONE_THREAD,
    SAMPLE,
    SHARDS,
    SLURM,
    assert_same_bits,
    job_field,
    start,
)

CANCELLED, TIMED_OUT, REQUEUED, KILLED = range(4)  # the shards of `disturbed`
MEMORY = "embed:mem_mb=1500+100*attempt"


@pytest.fixture(scope="module")
def disturbed(cluster, configure, undisturbed):
    """A run in which something else happens to each of the four shards, at the same time."""
    folder = configure("disturbed")
    leak = {"PACKEDESM_TEST_LEAK": str(Paths(folder / SAMPLE.root).shard_state(KILLED))}
    leak["PYTHONPATH"] = str(Path(__file__).parent / "leak")
    options = (*SLURM, *ONE_THREAD, f"--set-resources={MEMORY}")
    run = start(folder, *options, MERGED, environment=leak)
    run.freeze(CANCELLED, TIMED_OUT, REQUEUED)
    output("scancel", run.job(CANCELLED))
    output("scontrol", "update", f"JobId={run.job(TIMED_OUT)}", "TimeLimit=1")
    run.requeued = run.job(REQUEUED)
    output("scontrol", "requeue", run.requeued)
    run.text = run.finish()
    return run


@pytest.fixture(autouse=True)
def nothing_left(cluster):
    """A test that fails leaves its jobs behind: they must not stand in the way of the next."""
    yield
    cluster.cancel_jobs()


def test_a_disturbed_run_ends_with_the_same_bits(disturbed, undisturbed):
    assert_same_bits(disturbed, undisturbed)


def test_a_cancelled_job_is_submitted_again_and_goes_on(disturbed):
    assert "SLURM status is: 'CANCELLED'" in disturbed.text
    assert disturbed.record(CANCELLED)["restarts"] == 1
    assert disturbed.record(CANCELLED)["recomputed_packs"] <= 1


def test_a_job_at_its_time_limit_is_submitted_again_and_goes_on(disturbed):
    assert "SLURM status is: 'TIMEOUT'" in disturbed.text
    first, second = dict.fromkeys(disturbed.submitted(TIMED_OUT))
    assert job_field(first, "JobState") == "TIMEOUT"
    # A quarter of an hour and a fraction of a second, first once, then twice, in full minutes.
    assert job_field(second, "TimeLimit") == "00:31:00"
    assert disturbed.record(TIMED_OUT)["restarts"] == 1
    assert disturbed.record(TIMED_OUT)["recomputed_packs"] <= 1


def test_a_requeued_job_goes_on_without_using_up_a_retry(disturbed):
    assert job_field(disturbed.requeued, "Restarts") == "1"
    assert job_field(disturbed.requeued, "JobState") == "COMPLETED"
    assert disturbed.record(REQUEUED)["restarts"] == 1


def test_a_job_killed_for_its_memory_is_given_more_and_goes_on(disturbed):
    log = disturbed.folder / ".snakemake" / "slurm_logs"
    killed = "".join(path.read_text() for path in log.glob(f"rule_embed/*_{KILLED}/*.log"))
    assert "exceeded memory limit" in killed
    jobs = dict.fromkeys(disturbed.submitted(KILLED))
    requested = [job_field(job, "MinMemoryNode") for job in jobs]
    assert requested == ["1600M", "1700M"]
    assert disturbed.record(KILLED)["restarts"] == 1
    assert disturbed.record(KILLED)["recomputed_packs"] <= 1


def test_jobs_preempted_by_urgent_ones_come_back_without_using_up_a_retry(
    cluster, configure, undisturbed
):
    run = start(configure("preempted"), *SLURM, *ONE_THREAD, MERGED)
    run.freeze(0)
    job = run.job(0)
    node = job_field(job, "NodeList")
    urgent = ("sbatch", "--parsable", "--partition=urgent", f"--nodelist={node}", "--nodes=1")
    output(*urgent, "--gpus=2", "--output=/dev/null", "--wrap=sleep 5")
    text = run.finish()
    assert_same_bits(run, undisturbed)
    assert job_field(job, "Restarts") == "1"
    assert run.record(0)["restarts"] == 1
    assert "Error in rule" not in text


def test_orphans_of_a_lost_node_cannot_spoil_their_successors(cluster, configure, undisturbed):
    run = start(configure("lost-node"), *SLURM, *ONE_THREAD, MERGED)
    orphans = run.freeze(*range(SHARDS))
    jobs = {shard: run.job(shard) for shard in range(SHARDS)}
    node = job_field(jobs[0], "NodeList")
    early, late = lost = [s for s, job in jobs.items() if job_field(job, "NodeList") == node]
    token = run.owner(early)["token"]
    cluster.kill(node)
    for shard in set(jobs) - set(lost):
        os.kill(orphans[shard], signal.SIGCONT)
    try:
        wait_until(lambda: cluster.node_state(node).startswith("down"), 60, "the node to be lost")
        # The node was only cut off: its jobs are still at work. One wakes beside its successor,
        wait_until(lambda: run.owner(early)["token"] != token, 90, "a successor")
        os.kill(orphans[early], signal.SIGCONT)
        # the other when its successor is done, and its Snakemake sees it fail.
        wait_until(run.paths.shard_run(late).exists, 120, "a successor to finish")
        os.kill(orphans[late], signal.SIGCONT)
        wait_until(lambda: not processes_of(jobs[late]), 60, "the orphans to give up")
        text = run.finish()
    finally:
        cluster.start_node(node)
    assert not any(Path(f"/proc/{pid}/fd").exists() for pid in orphans.values())
    assert_same_bits(run, undisturbed)
    for shard in lost:
        assert job_field(jobs[shard], "Restarts") == "1"
        assert run.record(shard)["restarts"] == 1
    assert "Error in rule" not in text


def test_a_controller_that_is_away_for_a_minute_costs_nothing(cluster, configure, undisturbed):
    run = start(configure("no-controller"), *SLURM, *ONE_THREAD, MERGED)
    worker = run.freeze(0)[0]
    job = run.job(0)
    cluster.kill("slurmctld")
    os.kill(worker, signal.SIGCONT)  # it ends while nobody is there to be told
    time.sleep(60)
    assert not succeeds("scontrol", "ping")
    cluster.start_controller()
    text = run.finish()
    assert_same_bits(run, undisturbed)
    assert job_field(job, "JobState") == "COMPLETED"
    assert "Error in rule" not in text


def test_devices_that_compute_wrong_end_their_jobs_before_the_first_pack(cluster, configure):
    wrong = {"PYTHONPATH": str(Path(__file__).parent / "wrong")}
    options = (*SLURM, *ONE_THREAD, "--retries=0", MERGED)
    run = start(configure("wrong"), *options, environment=wrong)
    assert run.end() != 0
    for shard in range(SHARDS):
        (line,) = [
            line
            for line in (run.folder / "results" / ".logs" / "proteins" / f"embed.{shard}.log")
            .read_text()
            .splitlines()
            if " ERROR " in line
        ]
        assert "the first check fails: mean of" in line
        assert "computes wrong, or is damaged; run on another machine" in line
    assert not list(run.paths.work.glob("state/*/*.commit"))
    assert not run.paths.merging.exists()


def processes_of(job: str) -> list[str]:
    """Return the processes on this machine, whatever node they play, that belong to a job."""
    mark = f"SLURM_JOB_ID={job}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended
            if mark in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found
