import html
import shutil
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
from packedesm.sequences.flags import FLAGS


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
