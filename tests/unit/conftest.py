"""What several unit tests share: shards of real proteins, and torch on one thread."""

from pathlib import Path

import pytest
import torch

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.paths import Paths
from packedesm.sequences.shards import write_shards
from tests.typed import policy, shard_options
from tests.unit.checkpoint_files import SMALL

POLICY = policy()


@pytest.fixture
def shard(tmp_path: Path):
    """Return a function that writes one shard from sequences and gives its layout."""

    def write(*sequences: str, **config) -> Paths:
        fasta = tmp_path / "in.fasta"
        records = (f">protein{i}\n{sequence}\n" for i, sequence in enumerate(sequences))
        fasta.write_text("".join(records))
        paths = Paths(tmp_path / "sample")
        write_shards([fasta], paths, shard_options(**config), shards=1, width=64)
        return paths

    return write


@pytest.fixture
def small(tmp_path) -> Path:
    """A checkpoint of two layers in fair-esm's layout."""
    path = tmp_path / "small.pt"
    write_random_checkpoint(path, SMALL, seed=5)
    return path


@pytest.fixture(scope="module")
def one_thread():
    """Let torch use one thread, so that sums are made in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
