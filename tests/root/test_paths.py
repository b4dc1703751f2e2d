import pytest

from packedesm.paths import Paths

SAMPLE = Paths("results/a.b")


@pytest.mark.parametrize(
    "path",
    [
        SAMPLE.manifest,
        SAMPLE.array("mean"),
        SAMPLE.shard_index,
        SAMPLE.shard_fasta(3),
        SAMPLE.shard_array(3, "cls"),
    ],
)
def test_a_files_sample_is_found_again(path):
    assert Paths.of(path).root == SAMPLE.root
