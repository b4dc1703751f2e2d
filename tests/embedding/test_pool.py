"""Several processes take shards: whatever ends one of them, the others do the rest, or all end."""

import logging
import os
import re
import signal
import threading
import time

import pytest

from packedesm.device.lease import lease
from packedesm.device.nvml import Gpu
from packedesm.device.places import Place
from packedesm.embedding import pool
from packedesm.embedding.pool import embed_shards
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import Fault, UserError
from tests.embedding import pool_jobs
from tests.embedding.pool_jobs import RESIDUES, Jobs
from tests.fake_cuda.nvml import MadeUpGpu
from tests.forks import Forked

pytestmark = pytest.mark.usefixtures("forked_pools")

ECC = "CUDA error: uncorrectable ECC error encountered"
CPUS = [Place("cpu", "CPU process 0"), Place("cpu", "CPU process 1")]
A, B = MadeUpGpu("a"), MadeUpGpu("b")


@pytest.fixture
def jobs(tmp_path):
    """Return a function that makes jobs which leave notes in a folder of this test."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return lambda plan=(), **more: Jobs(folder, dict(plan), **more)


@pytest.fixture(autouse=True)
def said(caplog):
    """Return a function that gives the log's lines that match."""
    caplog.set_level(logging.INFO)
    return lambda words: [line for line in caplog.messages if re.search(words, line)]


def on(*gpus: MadeUpGpu) -> list[Place]:
    return [Place(gpu.uuid, f"GPU {n}") for n, gpu in enumerate(gpus)]


def run(embed: Jobs, shards=range(4), places=CPUS, before: int = 0) -> None:
    total = before + RESIDUES * len(shards)
    embed_shards(embed, list(shards), places, residues=total, before=before)


def test_each_shard_is_embedded_once_and_the_log_says_by_whom(jobs, said):
    embed = jobs()
    run(embed, [2, 0, 1], before=50)
    assert embed.done() == [0, 1, 2]
    assert len(embed.attempts()) == 3
    assert said("takes shard")[0].endswith("takes shard 2")
    assert len(said("^CPU process [01]: embeds [012]$")) == 3
    assert said("^embedding: 350 of 350 residues")


def test_there_are_no_more_processes_than_shards(jobs, said):
    run(jobs(), [0, 1], [Place("cpu", f"CPU process {n}") for n in range(5)])
    assert len(said("running on the CPU")) <= 2


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (pool_jobs.dies, r"was ended by SIGKILL, as the system does where memory is short; it is"),
        (pool_jobs.is_told_to_end, "ended with status 143; it is tried once more"),
        (pool_jobs.breaks, "CUDA error: unspecified launch failure; it is tried once more"),
    ],
)
def test_what_is_left_of_a_shard_whose_process_ends_goes_to_another(jobs, said, end, words):
    embed = jobs({1: (end,)}, together=2)
    run(embed, [1, 0, 2, 3])
    assert embed.done() == [0, 1, 2, 3]
    (line,) = said(words)
    assert line.endswith("and what is left of shard 1 goes to another process")
    first, second = said("takes shard 1")
    assert first != second  # nobody gets it twice while there is another
    # 40 residues were lost, 10 of which had been committed.
    assert said(r"^embedding: 400 of 400 residues \(100.0%\)")


def test_a_shard_that_ends_two_processes_ends_the_run_and_the_others_commit(jobs):
    embed = jobs({0: (pool_jobs.dies,) * 3, 1: (pool_jobs.waits,)}, together=2)
    with pytest.raises(Fault, match=r"^shard 0: two processes .* SIGKILL.*; what is finished"):
        run(embed, range(2), [*CPUS, Place("cpu", "CPU process 2")])
    assert [end for shard, _, end in embed.attempts() if shard == 1] == ["SystemExit"]


def test_a_fault_that_is_not_understood_is_raised_the_second_time_with_its_traceback(jobs, caplog):
    embed = jobs({0: (pool_jobs.breaks,) * 3})
    with pytest.raises(RuntimeError, match="unspecified launch failure") as caught:
        run(embed)
    (note,) = caught.value.__notes__
    assert "in breaks" in note
    (record,) = [record for record in caplog.records if "tried once more" in record.message]
    assert record.exc_info


@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        (
            pool_jobs.finds_the_disk_full,
            Fault,
            "FOLDER: no space is left on the disk; free some and",
        ),
        (pool_jobs.is_refused, UserError, "weights.pt: is gone"),
    ],
)
def test_a_fault_that_is_understood_ends_all_and_the_others_commit(jobs, end, kind, text):
    embed = jobs({0: (pool_jobs.waits,), 1: (end,)})
    with pytest.raises(kind, match=f"^{text}"):
        run(embed)
    assert [end for shard, _, end in embed.attempts() if shard == 0] == ["SystemExit"]
    assert len(embed.attempts()) == 2


def test_a_signal_lets_all_commit_and_end(jobs):
    embed = jobs({0: (pool_jobs.waits,), 1: (pool_jobs.waits,)})

    def stop():
        while len(embed.attempts()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as caught, stopping_on_signals():
        run(embed)
    assert caught.value.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert [end for _shard, _, end in embed.attempts()] == ["SystemExit"] * 2


def test_a_terminals_signals_are_left_to_the_command(jobs, said):
    embed = jobs({0: (pool_jobs.is_interrupted,)})
    run(embed, range(2))
    assert embed.done() == [0, 1]
    assert not said("tried once more")


def test_a_process_whose_command_was_killed_stops_in_order(jobs):
    embed = jobs({0: (pool_jobs.waits,)})
    command = Forked(embed.run_to_the_end)
    while not embed.attempts():
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (end := embed.attempts()[0][2]) == "begun" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert end == "SystemExit"


def test_a_process_that_does_not_end_is_killed(jobs, monkeypatch, said):
    monkeypatch.setattr(pool, "_PATIENCE", 0.2)
    embed = jobs({0: (pool_jobs.ignores_signals,), 1: (pool_jobs.is_refused,)})
    with pytest.raises(UserError):
        run(embed)
    assert said("CPU process [01]: its process does not end, and is killed")


# With GPUs


def test_each_process_computes_on_a_gpu_of_its_own(jobs, leases):
    embed = jobs(gpus=(A, B), together=2)
    run(embed, range(6), on(A, B))
    assert embed.done() == [*range(6)]
    assert {seen for _shard, seen, _end in embed.attempts()} == {A.uuid, B.uuid}


def test_a_gpu_that_fails_its_product_is_left_out(jobs, leases, said):
    bad = MadeUpGpu("bad", fault=ECC)
    embed = jobs(gpus=(bad, B), on={"b": pool_jobs.takes_a_while})
    run(embed, range(2), on(bad, B))
    assert [seen for _shard, seen, _end in embed.attempts()] == [B.uuid] * 2
    (line,) = said("left out")
    assert line.startswith(f"GPU 0: no GPU can be used: NVIDIA H100 ({bad.uuid}): {ECC}; ")
    assert line.endswith("; it is left out")
    assert not said("tried once more")


def test_a_gpu_that_none_was_begun_on_stands_in_for_one_that_is_left_out(jobs, leases):
    bad = MadeUpGpu("bad", fault=ECC)
    embed = jobs(gpus=(bad, A, B))
    run(embed, range(2), on(bad, A, B))
    assert {seen for _shard, seen, _end in embed.attempts()} <= {A.uuid, B.uuid}
    assert embed.done() == [0, 1]


def test_if_no_gpu_can_be_used_each_has_its_reason(jobs, leases):
    bad = tuple(MadeUpGpu(seed, fault=ECC) for seed in ("x", "y"))
    with pytest.raises(Fault, match=r"^no device is left to compute on; what is finished is kept "):
        run(jobs(gpus=bad), range(4), on(*bad))


def test_a_gpu_that_ends_every_process_is_given_up_and_loses_no_shard(jobs, leases, said):
    embed = jobs(gpus=(A, B), on={"a": pool_jobs.dies, "b": pool_jobs.takes_a_while}, together=2)
    run(embed, range(4), on(A, B))
    assert embed.done() == [0, 1, 2, 3]
    assert len([seen for _shard, seen, _end in embed.attempts() if seen == A.uuid]) == 2
    assert said("GPU 0: .*; it is left out, and what is left of shard")


def test_a_gpu_that_another_job_holds_is_not_waited_for(jobs, leases):
    embed = jobs(gpus=(A, B))
    with lease([Gpu(A.uuid, "made up")]):
        run(embed, range(3), on(A, B))
    assert [seen for _shard, seen, _end in embed.attempts()] == [B.uuid] * 3
