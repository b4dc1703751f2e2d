"""What the test cluster leaves behind: nothing."""

import signal
import subprocess
import sys

import pytest

from tests.slurm.cluster import CONFIGURATION, Cluster, is_ours

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cluster is for Linux")

OURS = dict.fromkeys(CONFIGURATION, b"ClusterName=packedesm-lab\n")
THEIRS = {"gres.conf": b"NodeName=big Name=gpu\n", "topology.conf": b"SwitchName=s1\n"}


@pytest.mark.parametrize(
    ("before", "after"), [({}, {}), (THEIRS, THEIRS), (OURS, {})], ids=["none", "theirs", "ours"]
)
def test_the_configuration_is_taken_away_and_what_was_there_is_put_back(tmp_path, before, after):
    etc = tmp_path / "etc"
    etc.mkdir()
    for name, content in before.items():
        (etc / name).write_bytes(content)
    cluster = Cluster(tmp_path / "state", etc)
    cluster.configure()
    assert is_ours(etc)
    assert str(cluster.state) in (etc / "gres.conf").read_text()
    cluster.stop()
    assert {path.name: path.read_bytes() for path in etc.iterdir()} == after


STEP = """
import socket, sys, time
with socket.socket(socket.AF_UNIX) as step:
    step.bind(sys.argv[1])
    print("bound", flush=True)
    time.sleep(60)
"""


def test_a_step_that_outlives_its_daemon_is_killed_and_no_other_process(tmp_path):
    cluster = Cluster(tmp_path / "state", tmp_path / "etc")
    cluster.configure()
    places = [cluster.state / "n1" / "n1_7.0", tmp_path / "other"]
    command = [sys.executable, "-c", STEP]
    step, other = processes = [
        subprocess.Popen([*command, place], stdout=subprocess.PIPE) for place in places
    ]
    try:
        assert [process.stdout.readline() for process in processes] == [b"bound\n"] * 2
        cluster.stop()
        assert step.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.communicate()
