"""Fixtures that several test folders share: real proteins, and where they come from."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def uniprot_500() -> Path:
    """The shipped example: 500 UniProtKB records, 43 of them over 1,022 residues."""
    return ROOT / "examples" / "uniprot_500.fasta.gz"


@pytest.fixture(scope="session")
def uniprot_20k() -> Path:
    """20,000 UniProtKB records, too large to ship."""
    folder = Path(os.environ.get("PACKEDESM_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "uniprot_20k.fasta.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {folder}; PACKEDESM_DATA names its folder")
    return path
