"""The file of AnnData, by the documentation of its format; anndata itself opens it in tests/models.

"On-disk format" in anndata.readthedocs.io, of anndata 0.12: each test has the words it follows.
"""

import h5py
import numpy as np
import pytest

import packedesm
from packedesm.results.exports import anndata, source
from tests.results.exported import RECORDS, add_array, copied, export


@pytest.fixture(scope="module")
def results(tmp_path_factory, short_results):
    return copied(short_results, tmp_path_factory.mktemp("h5ad"))


@pytest.fixture(scope="module")
def file(results):
    assert export(results, "--format", "h5ad") == 0
    with h5py.File(results / "exports" / "proteins.h5ad") as opened:
        yield opened


def kind(item):
    return item.attrs["encoding-type"], item.attrs["encoding-version"]


def test_each_element_says_what_it_is(file):
    """'An element MUST have a string-valued field "encoding-type" in its metadata'."""
    elements = [file]
    file.visititems(lambda _name, item: elements.append(item))
    assert all(isinstance(item.attrs["encoding-type"], str) for item in elements)
    assert kind(file) == ("anndata", "0.1.0")
    assert {kind(item) for item in elements} == {
        *{("anndata", "0.1.0"), ("dict", "0.1.0"), ("dataframe", "0.2.0"), ("array", "0.2.0")},
        *{("string-array", "0.2.0"), ("nullable-integer", "0.1.0")},
        *{("numeric-scalar", "0.2.0"), ("string", "0.2.0")},
    }


def test_obs_and_var_are_dataframes_whose_arrays_are_as_long_as_x(file):
    """'The group MUST contain entries "obs" and "var" …', '… X … shape MUST be (n_obs, n_var)'."""
    for name, size in zip(("obs", "var"), file["X"].shape, strict=True):
        frame = file[name]
        columns = list(frame.attrs["column-order"])
        assert set(frame) == {frame.attrs["_index"], *columns}
        assert kind(frame[frame.attrs["_index"]]) == ("string-array", "0.2.0")
        for column in columns:
            part = frame[column]
            lengths = (
                {len(part)} if isinstance(part, h5py.Dataset) else set(map(len, part.values()))
            )
            assert lengths == {size}
    assert {len(values) for values in file["obsm"].values()} == {len(RECORDS)}


def test_texts_are_of_variable_length_in_utf_8(file):
    """'In HDF5, string arrays MUST be stored using the variable length string data type'."""
    for name in ("obs/_index", "obs/id", "var/_index", "uns/packedesm_manifest"):
        text = h5py.check_string_dtype(file[name].dtype)
        assert (text.encoding, text.length) == ("utf-8", None)


def test_x_is_the_mean_and_others_are_beside_it(results, file):
    assert file["X"].dtype == np.float32
    np.testing.assert_array_equal(file["X"][:], packedesm.open(results).array("mean"))
    np.testing.assert_array_equal(file["obsm/cls"][:], packedesm.open(results).array("cls"))


def test_a_float16_array_and_names_are_those_of_its_rows_in_many_blocks(
    results, tmp_path, monkeypatch
):
    monkeypatch.setattr(anndata, "_ROWS", 5)
    monkeypatch.setattr(source, "BLOCK_BYTES", 600)
    changed = copied(results, tmp_path)
    values = np.arange(len(RECORDS) * 64, dtype=np.float16).reshape(-1, 64)
    add_array(changed, "max.layer1", values)
    path = tmp_path / "some.h5ad"
    assert export(changed, "--format", "h5ad", "-o", str(path), "--arrays", "max.layer1") == 0
    with h5py.File(path) as file:
        assert file["X"].dtype == np.float32
        np.testing.assert_array_equal(file["X"][:], values.astype(np.float32))
        names = [name.decode() for name in file["obs/_index"][:]]
        assert names[6:8] == ["twice", "twice~2"]
        assert [name.decode() for name in file["obs/id"][6:8]] == ["twice", "twice"]
        assert len(file["obsm"]) == 0


def test_numbers_alone_are_in_obs_and_there_is_no_x(results, tmp_path):
    """'The group MAY contain an entry X'."""
    changed = copied(results, tmp_path)
    numbers = np.linspace(1, 2, len(RECORDS), dtype=np.float32)
    add_array(changed, "pseudo_perplexity", numbers)
    path = tmp_path / "some.h5ad"
    command = ["--format", "h5ad", "-o", str(path), "--arrays", "pseudo_perplexity"]
    assert export(changed, *command) == 0
    with h5py.File(path) as file:
        assert "X" not in file
        assert len(file["var/_index"]) == 0
        np.testing.assert_array_equal(file["obs/pseudo_perplexity"][:], numbers)
