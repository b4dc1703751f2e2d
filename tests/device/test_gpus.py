"""Leases are tried with made-up GPUs and real processes: the locks are what is tested."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from packedesm.device.gpus import (
    Gpu,
    lease,
    lease_folder,
    select,
    shard_count,
    visible_gpus,
)
from packedesm.errors import Fault

GPUS = [Gpu(f"GPU-{letter}0000000", "made up", 1 << 30) for letter in "abc"]

HOLDER = """
    import sys, time
    from pathlib import Path
    from packedesm.device.gpus import Gpu, lease
    gpus = [Gpu(uuid, "made up", 1 << 30) for uuid in sys.argv[3].split(",")]
    with lease(gpus, Path(sys.argv[1]), poll_seconds=0.05) as gpu:
        print(gpu.uuid, time.monotonic(), flush=True)
        time.sleep(float(sys.argv[2]))
        print(time.monotonic(), flush=True)
"""


def hold(folder, seconds, gpus):
    uuids = ",".join(gpu.uuid for gpu in gpus)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), str(seconds), uuids]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_jobs_do_not_share_a_gpu_while_another_is_free(tmp_path):
    jobs = [hold(tmp_path, 30, GPUS[:2]) for _ in range(2)]
    try:
        taken = {job.stdout.readline().split()[0] for job in jobs}
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
    assert taken == {gpu.uuid for gpu in GPUS[:2]}


def test_more_jobs_than_gpus_take_turns_and_never_meet(tmp_path):
    jobs = [hold(tmp_path, 0.2, GPUS[:2]) for _ in range(8)]
    spans = []
    for job in jobs:
        uuid, start, end = job.communicate(timeout=60)[0].split()
        assert job.returncode == 0
        spans.append((uuid, float(start), float(end)))
    for i, (uuid, start, end) in enumerate(spans):
        for other, begin, finish in spans[i + 1 :]:
            assert uuid != other or finish <= start or end <= begin


def test_the_lease_of_a_killed_job_is_free_at_once(tmp_path):
    job = hold(tmp_path, 60, GPUS[:1])
    job.stdout.readline()
    job.send_signal(signal.SIGKILL)
    job.communicate()
    start = time.monotonic()
    with lease(GPUS[:1], tmp_path, poll_seconds=0.05) as gpu:
        assert gpu == GPUS[0]
    assert time.monotonic() - start < 5


def test_a_lease_ends_with_an_exception(tmp_path):
    with pytest.raises(ValueError, match="boom"), lease(GPUS[:1], tmp_path):
        raise ValueError("boom")
    with lease(GPUS[:1], tmp_path) as gpu:
        assert gpu == GPUS[0]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, "abc"),
        ("0,2", "ac"),
        ("2,0", "ca"),
        ("GPU-b", "b"),
        ("GPU-b0000000,GPU-a", "ba"),
        ("1,9,0", "b"),  # CUDA stops at the first entry it does not know
        ("GPU-", ""),  # ambiguous
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(wanted, expected):
    assert [gpu.uuid[4] for gpu in select(GPUS, wanted)] == list(expected)


def test_hidden_gpus_are_not_found_and_the_reason_is_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus, reason = visible_gpus()
    assert gpus == []
    assert "CUDA_VISIBLE_DEVICES" in reason


def test_shards_are_one_per_visible_gpu_or_as_asked(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shard_count("auto") == 1
    assert shard_count(7) == 7


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary folder; the system has given this user no other."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"packedesm-gpus-{os.getuid()}"


def test_leases_lie_where_only_this_user_may_write(temporary, tmp_path, monkeypatch):
    assert lease_folder() == temporary == lease_folder()
    assert temporary.stat().st_mode & 0o777 == 0o700
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert lease_folder().parent == runtime
    runtime.chmod(0o777)  # then it is not the one that the system gives
    assert lease_folder() == temporary


@pytest.mark.parametrize("kind", ["link", "file", "open to others", "of another user"])
def test_what_a_stranger_put_there_is_refused_and_not_followed(temporary, tmp_path, kind):
    aim = tmp_path / "aim"
    aim.mkdir()
    if kind == "link":
        temporary.symlink_to(aim)
    elif kind == "file":
        temporary.write_text("")
    else:
        temporary.mkdir()
        temporary.chmod(0o777 if kind == "open to others" else 0o700)
    if kind == "of another user":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(temporary, 65534, 65534)
    with pytest.raises(Fault, match=str(temporary)), lease(GPUS[:1]):
        pass
    assert not list(aim.iterdir())
