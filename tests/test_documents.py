"""What the documents say of the tests is so."""

import re
from pathlib import Path

import pytest

from tests.workflow import ROOT


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_tests_that_a_document_names_are_there(name):
    """Whole names, and beginnings of names; also of files."""
    tests = [*Path(__file__).parent.rglob("test_*.py"), *(ROOT / "examples").rglob("test_*.py")]
    known = {path.stem for path in tests}
    for path in tests:
        known |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\b(test_\w+)", (ROOT / "docs" / name).read_text("utf-8")))
    assert not {test for test in named if not any(have.startswith(test) for have in known)}
