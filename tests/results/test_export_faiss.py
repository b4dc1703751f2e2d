"""Exports for FAISS, opened by FAISS."""

import builtins
import logging
from importlib.util import find_spec

import numpy as np
import pytest

import packedesm
from packedesm.errors import Fault
from packedesm.results.exports import faiss as exporting
from tests.results.exported import RECORDS, add_array, copied, export

faiss = pytest.importorskip("faiss", reason="faiss-cpu, an optional package, is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory, short_results):
    return copied(short_results, tmp_path_factory.mktemp("faiss"))


@pytest.fixture(scope="module")
def folder(results):
    assert export(results, "--format", "faiss") == 0
    return results / "exports" / "faiss"


def test_the_matrix_is_the_vectors_and_the_table_their_ids_in_order(results, folder):
    assert {path.name for path in folder.iterdir()} == {"mean.npy", "mean.faiss", "ids.tsv"}
    matrix = np.load(folder / "mean.npy")
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, packedesm.open(results).array())
    head, *lines = (folder / "ids.tsv").read_text().splitlines()
    assert head == "row\tid"
    assert lines == [f"{row}\t{name}" for row, (name, _, _) in enumerate(RECORDS)]


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP_IFC])
def test_the_index_finds_the_nearest_by_cosine(results, folder, flags):
    index = faiss.read_index(str(folder / "mean.faiss"), flags)
    assert (index.ntotal, index.metric_type) == (len(RECORDS), faiss.METRIC_INNER_PRODUCT)
    vectors = packedesm.open(results).array(copy=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, rows = index.search(vectors, 3)
    expected = vectors @ vectors.T
    np.testing.assert_allclose(cosines, np.sort(expected)[:, :-4:-1], atol=1e-6)
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, rows, 1), atol=1e-6)
    assert set(rows[6][:2]) == {6, 7}  # one sequence twice


def test_the_file_is_the_one_that_faiss_would_write(folder, tmp_path):
    rows = np.load(folder / "mean.npy")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (folder / "mean.faiss").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_row_of_zeros_stays_one_and_each_array_has_its_files(results, tmp_path):
    changed = copied(results, tmp_path)
    values = np.zeros((len(RECORDS), 64), np.float16)
    values[1:] = 3
    add_array(changed, "max.layer1", values)
    place = tmp_path / "faiss"
    assert (
        export(changed, "--format", "faiss", "-o", str(tmp_path), "--arrays", "max.layer1,cls") == 0
    )
    index = faiss.read_index(str(place / "max.layer1.faiss"))
    np.testing.assert_array_equal(index.reconstruct(0), np.zeros(64))
    np.testing.assert_allclose(index.reconstruct(1), np.full(64, 1 / 8))
    np.testing.assert_array_equal(np.load(place / "cls.npy"), packedesm.open(results).array("cls"))
    assert (place / "cls.faiss").exists()


def test_without_faiss_there_are_matrices_and_a_line_says_what_to_install(
    results, tmp_path, monkeypatch, caplog
):
    assert find_spec("faiss")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    imported = builtins.__import__

    def refuse(name, *arguments, **more):
        assert name != "faiss"
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with caplog.at_level(logging.WARNING):
        assert export(results, "--format", "faiss", "-o", str(tmp_path)) == 0
    assert {path.name for path in (tmp_path / "faiss").iterdir()} == {"mean.npy", "ids.tsv"}
    assert "pip install 'packedesm[faiss]'" in caplog.text


def test_a_faiss_that_writes_otherwise_is_refused_before_rows_are_written(monkeypatch):
    monkeypatch.setattr(
        faiss, "serialize_index", lambda index: np.frombuffer(b"IxF2" + bytes(99), np.uint8)
    )
    with pytest.raises(Fault, match="writes its files in another way"):
        exporting._head(10, 4)
