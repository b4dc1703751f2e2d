"""What the test cluster leaves behind: nothing."""

import pytest

from tests.slurm.cluster import CONFIGURATION, Cluster, is_ours

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
