import html
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import packedesm
from packedesm.cli import main
from packedesm.errors import Damaged
from packedesm.files import file_digest, read_record, write_json, write_record
from packedesm.paths import Paths
from packedesm.results import reader
from packedesm.sequences.flags import FLAGS
from tests.results.more_arrays import with_arrays


def test_a_folder_without_a_manifest_is_no_finished_run(tmp_path):
    with pytest.raises(packedesm.UserError, match="not the results of a finished run"):
        packedesm.open(tmp_path)


def test_a_manifest_that_is_not_as_it_was_written_is_refused(tmp_path):
    path = Paths(tmp_path).manifest
    write_record(path, {"format": 2, "records": 8, "request": {"format": 1}})
    path.write_text(path.read_text().replace('"records": 8', '"records": 9'))
    with pytest.raises(Damaged):
        packedesm.open(tmp_path)


@pytest.mark.parametrize(("write", "version"), [(write_json, 1), (write_record, 2)])
def test_an_output_that_was_not_made_is_named(tmp_path, write, version):
    content = {"format": version, "records": 1, "arrays": {"mean.npy": {}}}
    write(Paths(tmp_path).manifest, content)
    with pytest.raises(packedesm.UserError, match=r"has no residue\.npy; it holds mean\.npy"):
        packedesm.open(tmp_path).residues(0)


S = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoints) -> packedesm.Results:
    """Results whose ids are whole headers, with a skipped record, a duplicate and DNA."""
    folder = tmp_path_factory.mktemp("finished")
    fasta = folder / "in.fasta"
    dna = "ACGTTGCATTGACCAGTTACGATGCA"
    fasta.write_text(f">none here\n>prot 1\n{S}\n>prot 2\n{S[1:]}\n>again\t1\n{S}\n>d\n{dna}\n")
    options = ["--ids", "header", "--empty-sequences", "skip", "--outputs", "mean,residue"]
    options += ["--checkpoints", str(checkpoints), "--output-dtype", "float16"]
    assert main(["embed", str(fasta), "-o", str(folder / "out"), *options]) == 0
    return packedesm.open(folder / "out")


@pytest.fixture(scope="module")
def folder(finished) -> Path:
    return Path(finished.manifest["config"]["fasta"]).parent / "out"


def test_ids_that_are_whole_headers_lead_to_their_vectors(finished):
    assert finished.ids == ["prot 1", "prot 2", "again\t1", "d"]
    assert finished.row("prot 2") == 1
    np.testing.assert_array_equal(finished.vector("again\t1"), finished.array()[0])
    assert finished.residues("prot 2").shape[0] == len(S) - 1
    assert finished.index["record"].tolist() == [2, 3, 4, 5]


def test_finished_results_have_the_list_of_skipped_records(finished, folder):
    path = folder / "skipped.tsv"
    assert pd.read_csv(path, sep="\t")["id"].tolist() == ["none here"]
    assert finished.manifest["sha256"]["skipped.tsv"] == file_digest(path)


def test_metrics_and_report_tell_what_is_likely_no_protein(folder):
    metrics = read_record(folder / "metrics.json")
    assert metrics["flags"]["nucleotide_like"] == 1
    (warning,) = [line for line in metrics["warnings"] if "DNA" in line]
    page = html.unescape((folder / "report.html").read_text("utf-8"))
    assert warning in page
    assert FLAGS["nucleotide_like"].meaning in page
    assert any("'none here'" in line and line in page for line in metrics["warnings"])


def test_an_array_is_read_only_and_a_copy_may_be_written_to(finished):
    array, copy = finished.array(), finished.array(copy=True)
    assert not array.flags.writeable
    assert array.dtype == np.float16
    assert (copy.dtype, copy.flags.writeable, copy.flags.c_contiguous) == (np.float32, True, True)
    np.testing.assert_array_equal(copy, array.astype(np.float32))
    copy /= np.linalg.norm(copy, axis=1, keepdims=True)
    np.testing.assert_array_equal(finished.array(), array)
    assert type(copy) is np.ndarray


def test_duplicates_are_whole_numbers_in_pandas(finished, folder):
    path = folder / "index.parquet"
    plain, some = pd.read_parquet(path), pd.read_parquet(path, columns=["id", "duplicate_of"])
    for index in (finished.index, plain, some, pq.read_table(path).to_pandas()):
        assert str(index["duplicate_of"].dtype) == "Int64"
        assert index["duplicate_of"].isna().tolist() == [True, True, False, True]
        assert index["duplicate_of"][2] == 0
    assert plain.index.tolist() == [0, 1, 2, 3]
    assert pd.read_parquet(path, columns=["id"]).columns.tolist() == ["id"]


def test_the_index_of_an_early_version_is_read(folder, tmp_path):
    """It has neither `file` and `record` nor a word on how pandas shall read `duplicate_of`."""
    early = Path(shutil.copytree(folder, tmp_path / "early"))
    index = pq.read_table(early / "index.parquet").drop(["file", "record"])
    pq.write_table(index.replace_schema_metadata(None), early / "index.parquet")
    (early / "skipped.tsv").unlink()
    found = packedesm.open(early).index
    assert str(found["duplicate_of"].dtype) == "Int64"
    assert found["duplicate_of"].isna().tolist() == [True, True, False, True]


MORE = ("mean.layer3", "residue.layer0", "logits", "log_likelihood", "masked_marginals")
MORE += ("pseudo_perplexity", "contacts")


@pytest.fixture(scope="module")
def every(folder, tmp_path_factory) -> packedesm.Results:
    """The same results with arrays of every output, and of other layers; the depth is 6."""
    place = tmp_path_factory.mktemp("every") / "out"
    results = packedesm.open(with_arrays(folder, place, *MORE))
    assert results.depth == 6
    return results


def saved(results, name) -> np.ndarray:
    return np.load(results.path / f"{name}.npy")


@pytest.mark.parametrize("layer", [3, -4, np.int64(3)])
def test_layers_are_counted_as_fair_esm_counts_them(every, layer):
    np.testing.assert_array_equal(every.array("mean", layer=layer), saved(every, "mean.layer3"))
    np.testing.assert_array_equal(every.array("mean.layer3"), saved(every, "mean.layer3"))
    np.testing.assert_array_equal(every.vector(2, layer=layer), saved(every, "mean.layer3")[2])
    first = every.residues(1, layer=-7)
    offsets = np.load(every.path / "residue_offsets.npy")
    np.testing.assert_array_equal(first, saved(every, "residue.layer0")[offsets[1] : offsets[2]])


@pytest.mark.parametrize("layer", [None, "last", 6, -1])
def test_the_last_layer_has_several_names(every, layer):
    np.testing.assert_array_equal(every.array("mean", layer), saved(every, "mean"))
    assert every.name("logits", layer) == "logits"
    assert every.name("mean.layer6") == "mean"


@pytest.mark.parametrize(
    ("output", "layer", "words"),
    [
        ("cls", None, "has no cls.npy; it holds mean.npy, residue.npy, mean.layer3.npy"),
        ("mean", 2, "has no mean.layer2.npy; it holds mean.npy"),
        ("mean", 7, "no layer 7; the model has 0 (the embeddings) to 6"),
        ("mean", -8, "no layer -8"),
        ("mean", True, "no layer True"),
        ("mean", "first", "no layer 'first'"),
        ("mean", 3.0, "no layer 3.0"),
        ("average", None, "'average' is no output; it holds mean.npy"),
        ("mean.layer3", 3, "names a layer; give none besides"),
        ("logits", 3, "logits is not of one layer"),
        (["mean"], None, "is no output"),
    ],
)
def test_an_array_that_is_not_there_is_named_with_what_is(every, output, layer, words):
    with pytest.raises(packedesm.UserError) as caught:
        every.array(output, layer)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_lines_of_residues_are_those_of_their_record(every):
    offsets = np.load(every.path / "residue_offsets.npy")
    for name in ("logits", "log_likelihood", "masked_marginals"):
        lines = getattr(every, name)("prot 2")
        np.testing.assert_array_equal(lines, saved(every, name)[offsets[1] : offsets[2]])
    assert every.logits(0).shape == (len(S), 33) and every.masked_marginals(0).shape[1] == 20
    assert every.log_likelihood(0).shape == (len(S),)
    assert every.columns("masked_marginals")[:3] == ["L", "A", "G"]
    assert every.columns("logits")[0] == "<cls>" and every.columns("mean") is None
    assert every.vector(1, "pseudo_perplexity") == saved(every, "pseudo_perplexity")[1]
    np.testing.assert_array_equal(every.offsets("mean"), range(5))
    np.testing.assert_array_equal(every.offsets("logits"), offsets)


def test_contacts_are_a_square_from_the_upper_triangle(every):
    start = np.load(every.path / "contacts_offsets.npy")[1]
    flat, length = saved(every, "contacts"), len(S) - 1
    square = every.contacts(1)
    assert square.shape == (length, length) and square.dtype == np.float32
    places = [(i, j) for i in range(length) for j in range(i, length)]
    for number, (i, j) in enumerate(places):
        assert square[i, j] == square[j, i] == np.float32(flat[start + number])


def test_lines_of_residues_are_no_vector(every):
    with pytest.raises(packedesm.UserError, match="logits has lines for every residue"):
        every.vector(0, "logits")


@pytest.mark.parametrize("row", [-1, 4, np.int64(4), 10**9])
def test_a_row_that_is_not_there_is_an_index_error(finished, row):
    with pytest.raises(IndexError, match=f"no row {row}; there are 4"):
        finished.vector(row)


@pytest.mark.parametrize("row", [True, np.True_, 1.0, None])
def test_what_is_neither_row_nor_id_is_a_type_error(finished, row):
    with pytest.raises(TypeError):
        finished.vector(row)


def test_near_ids_are_found_in_capitals_and_in_small_letters():
    assert reader.near_ids("brca1", ["BRCA2", "sp|BRCA1|X", "BRCA1"])[:2] == ["sp|BRCA1|X", "BRCA1"]
    assert reader.near_ids("BrCA3", ["brca1", "tp53"]) == ["brca1"]


@pytest.mark.parametrize("row", [0, None, ["prot 1"], b"prot 1"])
def test_a_row_is_found_by_a_text_alone(finished, row):
    with pytest.raises(TypeError, match="an id is a text, not a"):
        finished.row(row)


def test_a_damaged_index_is_a_fault_that_names_the_file(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = copy / "index.parquet"
    index.write_bytes(index.read_bytes()[:-9])
    for read in (lambda results: results.ids, lambda results: results.index):
        with pytest.raises(packedesm.Fault, match=r"index\.parquet: .* damaged; delete it and run"):
            read(packedesm.open(copy))
    index.unlink()
    with pytest.raises(packedesm.Fault, match=r"index\.parquet: is gone"):
        packedesm.open(copy).ids  # noqa: B018, it reads


def test_rows_may_be_integers_of_numpy(finished):
    np.testing.assert_array_equal(finished.vector(np.uint8(1)), finished.vector("prot 2"))
    np.testing.assert_array_equal(finished.residues(np.int32(1)), finished.residues(1))


def test_an_id_that_is_not_there_is_told_with_those_that_are_near(finished):
    with pytest.raises(KeyError, match=r"has the id .*'prot 3.*; near it are .*'prot 1.*"):
        finished.vector("prot 3")
    with pytest.raises(KeyError, match=r"no record has the id .*'completely else..$"):
        finished.vector("completely else")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("P0500017", "sp|P0500017|X_500017"),
        ("sp|P0500017|X_OTHER", "sp|P0500017|X_500017"),
        ("SP|P0500017|X_500017", "sp|P0500017|X_500017"),
        ("sp|P0500O17|X_500017", "sp|P0500017|X_500017"),
        ("SP|p0500O17|x_500017", "sp|P0500017|X_500017"),
        ("x" * 100_000, None),
        ("sp", "sp|P0000000|X_0"),
        ("", None),
    ],
)
def test_near_ids_are_found_soon_among_a_million(a_million, wanted, near):
    start = time.process_time()
    found = reader.near_ids(wanted, a_million)
    assert time.process_time() - start < 1.5
    assert found[:1] == [near] * (near is not None)


@pytest.fixture(scope="module")
def a_million() -> list[str]:
    return [f"sp|P{number:07}|X_{number}" for number in range(10**6)]


OPENING = """
import sys, time
import packedesm
packedesm.open(sys.argv[1]).array("mean")  # what has to be imported is
start = time.process_time()
results = packedesm.open(sys.argv[1])
results.array("mean")[0]
opened = time.process_time()
results.vector(results.ids[-1])
large = {"pandas", "torch", "pyarrow.pandas_compat"} & sys.modules.keys()
print(opened - start, time.process_time() - opened, *large)
"""


def test_results_open_within_50_ms_and_without_pandas(folder):
    run = [sys.executable, "-c", OPENING, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    opening, _ids, *large = done.stdout.split()
    assert float(opening) < 0.05
    assert not large


def test_an_array_that_is_gone_or_another_is_told(every, tmp_path):
    broken = Path(shutil.copytree(every.path, tmp_path / "out"))
    (broken / "logits.npy").unlink()
    np.save(broken / "mean.npy", np.zeros((3, 64), np.float16))
    (broken / "mean.layer3.npy").write_bytes(b"no array")
    results = packedesm.open(broken)
    with pytest.raises(packedesm.UserError, match=r"logits\.npy: is gone"):
        results.logits(0)
    for name in ("mean", "mean.layer3"):
        with pytest.raises(Damaged, match=f"{name}.npy"):
            results.array(name)


def test_lookups_of_ids_take_the_same_time_in_any_number_of_records(finished, a_million):
    results = packedesm.open(finished.path)
    results.ids = a_million  # in place of those of the index
    results.row(a_million[0])
    start = time.process_time()
    for number in range(0, 10**6, 100):
        assert results.row(a_million[number]) == number
    assert time.process_time() - start < 0.5
