"""What is written and drawn about the house is true of the code."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.draw_architecture import COLOURS, DOES, EDGE, GIVES, LENDS, PICTURE, WIDTH, drawing
from tests.house import ROOMS, House

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "packedesm"
DOCUMENTS = ("CONTRIBUTING.md", "docs/architecture.md", "docs/releasing.md")
FOLDERS = ("benchmarks", "docs", "envs", "examples", "profiles", "rules", "schemas", "scripts")


def test_the_picture_is_that_of_the_code():
    # Compared as a whole: pytest's account of two long texts takes minutes.
    same = PICTURE.read_text() == drawing(House(SOURCE))
    assert same, "the code has changed since docs/architecture.svg was drawn: make architecture"


def test_nothing_in_the_picture_lies_beyond_its_edge():
    picture = ElementTree.fromstring(PICTURE.read_text())
    counts = [int(count.get("x")) for count in picture.findall(".//*[@class='count']")]
    assert counts and max(counts) < WIDTH - EDGE


def test_the_picture_says_of_every_room_what_it_does_and_gives():
    assert list(DOES) == list(COLOURS) == list(ROOMS)
    assert GIVES.keys() | LENDS.keys() == set(ROOMS)
    assert [room for room in ROOMS if room in GIVES] == list(GIVES)


def test_the_picture_shows_modules_and_counts_imports_between_rooms(tmp_path):
    for name, text in {
        "cli": "import tiny.packing.packer",
        "files": "",
        "sequences/fasta": "",
        "sequences/shards": "import tiny.files",
        "packing/packer": "from tiny.sequences import fasta, shards\nimport tiny.sequences.fasta",
    }.items():
        path = tmp_path / "tiny" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    picture = drawing(House(tmp_path / "tiny"))
    texts = list(ElementTree.fromstring(picture).itertext())
    assert {"cli", "files", "fasta", "shards", "packer"} <= set(texts)
    counts = ElementTree.fromstring(picture).findall(".//*[@class='count']")
    assert [count.text for count in counts] == ["2"]
    assert "doors: 1 imports of rooms" in texts
    assert any("they all lead upwards" in text for text in texts)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_are_there(document):
    named = set(re.findall(r"`([\w./-]+)`", (ROOT / document).read_text()))
    missing = []
    for name in sorted(name for name in named if "/" in name.strip("/")):
        first = name.split("/")[0]
        if first in ROOMS:
            path = SOURCE / name
            there = path.is_dir() if name.endswith("/") else path.with_suffix(".py").exists()
        else:
            there = first not in (*FOLDERS, "src", "tests", ".ci", ".github")
            there = there or (ROOT / name).exists()
        if not there:
            missing.append(name)
    assert not missing, f"{document} names what is not there: {', '.join(missing)}"
