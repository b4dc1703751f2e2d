"""Leases are tried with made-up GPUs and real processes: the locks are what is tested."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from packedesm.device.lease import Unusable, freest_first, lease, lease_folder
from packedesm.device.nvml import Gpu
from packedesm.errors import Fault

GPUS = [Gpu(f"GPU-{letter}0000000", "made up", 1 << 30) for letter in "abc"]

HOLDER = """
    import sys, time
    from pathlib import Path
    from packedesm.device.lease import lease
    from packedesm.device.nvml import Gpu
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


def test_the_first_to_be_taken_is_idle_and_has_most_free_memory():
    full = Gpu("GPU-full", "made up", 80, free_bytes=3, processes=0)
    free = Gpu("GPU-free", "made up", 80, free_bytes=80, processes=0)
    busy = Gpu("GPU-busy", "made up", 80, free_bytes=79, processes=2)
    shy = Gpu("GPU-shy", "made up", 80, free_bytes=80, processes=None)  # does not tell who runs
    unknown = Gpu("MIG-unknown", "MIG-unknown")
    order = freest_first([unknown, busy, full, free, shy])
    assert order == [free, shy, full, busy, unknown]


def test_a_gpu_that_fails_its_trial_is_named_and_the_next_one_taken(tmp_path, caplog):
    tried = []

    def trial(gpu: Gpu) -> str | None:
        tried.append(gpu)
        return "CUDA error: uncorrectable ECC error" if gpu == GPUS[0] else None

    with lease(GPUS, tmp_path, trial=trial) as gpu:
        assert gpu == GPUS[1]
    assert tried == GPUS[:2]
    assert caplog.messages == [f"{GPUS[0]} cannot be used: CUDA error: uncorrectable ECC error"]


def test_a_trial_holds_the_lease_and_gives_it_back(tmp_path):
    def trial(gpu: Gpu) -> str | None:
        with pytest.raises(Timeout):
            FileLock(tmp_path / f"{gpu.uuid}.lock").acquire(blocking=False)
        return "is broken"

    with pytest.raises(Unusable), lease(GPUS, tmp_path, trial=trial):
        pass
    with lease(GPUS, tmp_path) as gpu:
        assert gpu == GPUS[0]


def test_if_all_fail_each_has_its_reason(tmp_path):
    reasons = dict(zip(GPUS, ("is busy", "is broken", "is busy"), strict=True))
    with pytest.raises(Unusable) as caught, lease(GPUS, tmp_path, trial=reasons.get):
        pass
    assert str(caught.value) == f"{GPUS[0]}, {GPUS[2]}: is busy; {GPUS[1]}: is broken"


def test_where_one_is_broken_and_the_other_held_the_job_waits_for_that(tmp_path):
    job = hold(tmp_path, 0.3, GPUS[:1])
    job.stdout.readline()
    refuse = {GPUS[1]: "is broken"}.get
    with lease(GPUS[:2], tmp_path, poll_seconds=0.05, trial=refuse) as gpu:
        assert gpu == GPUS[0]
    assert job.communicate(timeout=60)[0]  # it had ended, and has said when


def test_a_gpu_known_by_its_entry_alone_has_a_lock_too(tmp_path):
    entry = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"
    with lease([Gpu(entry, entry)], tmp_path):
        (lock,) = tmp_path.iterdir()
        with pytest.raises(Timeout):
            FileLock(lock).acquire(blocking=False)


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


@pytest.mark.parametrize("runtime", ["", "runtime"])
def test_a_runtime_folder_that_depends_on_where_one_stands_is_none(
    temporary, tmp_path, monkeypatch, runtime
):
    """Or jobs that were started in two folders would share a GPU."""
    (tmp_path / "stand" / runtime).mkdir(mode=0o700, parents=True)
    monkeypatch.chdir(tmp_path / "stand")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    if runtime:  # where none is named, the system's counts, if there is one
        assert lease_folder() == temporary
    assert lease_folder().is_absolute()


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_folder_of_leases_that_cannot_be_made_is_one_line(temporary, monkeypatch, refusal):
    def mkdir(_path, *_arguments, **_more):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(Fault, match=f"{temporary}: .*{os.strerror(refusal)}.*; set TMPDIR"):
        lease_folder()


def test_without_any_temporary_folder_one_line_says_so(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null"])
    with pytest.raises(Fault, match=r"the temporary folder: .*; set TMPDIR"):
        lease_folder()


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_lock_that_the_system_refuses_is_one_line(tmp_path, monkeypatch, refusal):
    def acquire(_self, **_options):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with (
        pytest.raises(Fault, match=rf"{GPUS[0].uuid}\.lock: .*; set TMPDIR"),
        lease(GPUS, tmp_path),
    ):
        pass


def test_a_folder_in_the_place_of_a_lock_is_one_line(tmp_path):
    (tmp_path / f"{GPUS[0].uuid}.lock").mkdir()
    with pytest.raises(Fault, match=f"{GPUS[0].uuid}.lock: "), lease(GPUS, tmp_path):
        pass
