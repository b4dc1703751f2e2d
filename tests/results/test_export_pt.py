"""Exports as fair-esm's esm-extract: what its users load, and what fair-esm itself says."""

import numpy as np
import pytest
import torch

import packedesm
from packedesm.esm2.registry import TINY
from packedesm.reference.model import Reference
from tests.results.exported import (
    LIMIT,
    LONG,
    RECORDS,
    add_array,
    add_contacts,
    copied,
    export,
    id_table,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, short_results):
    return copied(short_results, tmp_path_factory.mktemp("pt"))


@pytest.fixture(scope="module")
def folder(results):
    assert export(results, "--format", "pt") == 0
    return results / "exports" / "pt"


def load(path):
    """Load a file as esm-extract's users do, with torch's default since 2.6 said aloud."""
    return torch.load(path, weights_only=True)


def test_every_record_has_a_file_by_its_label_and_its_label_inside(results, folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
    assert len(files) == len(RECORDS)
    assert {"plain.pt", "a/b.pt", "twice.pt", "rare.pt", "001.pt"} < files
    table = id_table(results / "exports" / "pt.ids.tsv")
    for row, (name, _, _) in enumerate(RECORDS):
        key = table[row][1] if row in table else name
        assert load(folder / f"{key}.pt")["label"] == name
    assert not (folder.parent / "out.pt").exists()


def test_ids_that_are_no_paths_are_replaced_and_a_table_tells(results, folder):
    table = id_table(results / "exports" / "pt.ids.tsv")
    told = {name: key for name, key in table.values() if name != LONG}
    assert told == {
        "A/B": "A%2FB",  # a/b on a Mac
        "../out": "..%2Fout",
        "x.pt/y": "x.pt%2Fy",
        "/root": "%2Froot",
        "twice": "twice~2",
    }
    (long,) = (key for name, key in table.values() if name == LONG)
    assert len(long.encode()) <= 240
    assert long.startswith("xxx")


def test_a_file_holds_what_fair_esm_says_in_its_places(folder, checkpoints):
    reference = Reference(checkpoints / f"{TINY}.pt")
    for row, name in ((0, "plain"), (9, "rare"), (11, "single"), (12, "001")):
        found = load(folder / f"{name}.pt")
        tokens = reference.representation(RECORDS[row][2][:LIMIT])
        expected = {
            "representations": tokens[1:-1],
            "mean_representations": tokens[1:-1].mean(0),
            "bos_representations": tokens[0],
        }
        assert found.keys() == {"label", *expected}
        for part, values in expected.items():
            assert list(found[part]) == [3]  # the depth of the model, a number
            tensor = found[part][3]
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor.numpy(), values, rtol=0, atol=1e-5)


def test_a_tensor_has_memory_of_its_own(folder):
    """A view into a larger one would be saved with all of it."""
    found = load(folder / "plain.pt")["mean_representations"][3]
    assert found.untyped_storage().nbytes() == found.numel() * 4
    assert (folder / "single.pt").stat().st_size < 5000


@pytest.fixture(scope="module")
def more(results, tmp_path_factory):
    """Results with further layers, and contacts, in float16; and the contacts."""
    changed = copied(results, tmp_path_factory.mktemp("more"))
    mean = packedesm.open(changed).array()
    add_array(changed, "mean.layer0", (mean * 2).astype(np.float16))
    return changed, add_contacts(changed)


def test_every_layer_and_contacts_are_there_in_float32(more):
    changed, maps = more
    assert export(changed, "--format", "pt", "-o", str(changed.parent / "all")) == 0
    mean = packedesm.open(changed).array("mean.layer0")
    for row, name in ((0, "plain"), (1, "a/b"), (11, "single")):
        found = load(changed.parent / "all" / "pt" / f"{name}.pt")
        assert set(found["mean_representations"]) == {0, 3}
        layer = found["mean_representations"][0]
        assert layer.dtype == found["contacts"].dtype == torch.float32
        np.testing.assert_array_equal(layer.numpy(), mean[row].astype(np.float32))
        np.testing.assert_array_equal(found["contacts"].numpy(), maps[row].astype(np.float32))


def test_what_is_asked_for_alone_is_there(more):
    changed, _ = more
    place = changed.parent / "some"
    assert export(changed, "--format", "pt", "-o", str(place), "--arrays", "mean.layer0") == 0
    found = load(place / "pt" / "plain.pt")
    assert found.keys() == {"label", "mean_representations"}
    assert list(found["mean_representations"]) == [0]
