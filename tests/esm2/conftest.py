"""A small checkpoint for the tests of this room."""

from pathlib import Path

import pytest

from packedesm.esm2.fair_esm import write_random_checkpoint
from tests.esm2.checkpoint_files import SMALL


@pytest.fixture
def small(tmp_path) -> Path:
    """A checkpoint of two layers in fair-esm's layout."""
    path = tmp_path / "small.pt"
    write_random_checkpoint(path, SMALL, seed=5)
    return path
