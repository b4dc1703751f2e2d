"""Each export, opened by the readers that users use."""

import hashlib

import h5py
import numpy as np
import pandas as pd
import pytest

import packedesm
from packedesm.cli import main
from packedesm.esm2.registry import TINY
from packedesm.results.exports import configured, formats
from tests.results.conftest import MAX_LENGTH, RECORDS

IDS, SEQUENCES = zip(*RECORDS, strict=True)
KEYS = ["P1", "P1%2F1-20~2", "sp|P12345|ONE_HUMAN", "%2E", "P1~2", "P1%2F1-20", "n%00ul"]
KEYS += ["tr|A0A0B4J2F0|TWO_MOUSE", "gi|long|", "Ünïcode", ".."]


@pytest.fixture(scope="module")
def results(exporting) -> packedesm.Results:
    return packedesm.open(exporting / "out")


@pytest.fixture(scope="module")
def export(with_more, tmp_path_factory):
    """Return a function that exports results with arrays of every kind; it gives the folder."""

    def run(*arguments: str):
        place = tmp_path_factory.mktemp("export") / "made"
        assert main(["export", str(with_more.path), "-o", str(place), *arguments]) == 0
        return place

    return run


def table(path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


# HDF5


def test_h5_is_flat_with_a_vector_per_protein_and_lines_per_residue(results):
    with h5py.File(results.path / "exports" / "per_protein.h5") as file:
        assert file.attrs["model_name"] == TINY
        assert set(file) == set(KEYS)
        for row, key in enumerate(KEYS):
            assert file[key].shape == (64,) and file[key].dtype == np.float16
            np.testing.assert_array_equal(file[key], results.vector(row))
    with h5py.File(results.path / "exports" / "per_residue.h5") as file:
        assert set(file) == set(KEYS)
        for row, (key, letters) in enumerate(zip(KEYS, SEQUENCES, strict=True)):
            assert file[key].shape == (min(len(letters), MAX_LENGTH), 64)
            np.testing.assert_array_equal(file[key], results.residues(row))


def test_a_table_tells_which_id_became_which_key(results):
    for name in ("per_protein", "per_residue"):
        head, *lines = table(results.path / "exports" / f"{name}.h5.ids.tsv")
        assert head == ["row", "id", "key"]
        shown = {1: "P1/1-20", 3: ".", 4: "P1", 6: "n\\x00ul"}
        assert lines == [[str(row), text, KEYS[row]] for row, text in shown.items()]


def test_h5_holds_other_arrays_in_files_of_their_own(export, with_more):
    names = "mean.layer2,residue.layer0,logits,log_likelihood,masked_marginals,cls"
    place = export("--format", "h5", "--arrays", names)
    files = {path.name for path in place.iterdir() if path.suffix == ".h5"}
    per_residue = ("residue.layer0", "logits", "log_likelihood", "masked_marginals")
    assert files == {f"per_residue.{name}.h5" for name in per_residue} | {
        *("per_protein.mean.layer2.h5", "per_protein.cls.h5")
    }
    with h5py.File(place / "per_residue.log_likelihood.h5") as file:
        np.testing.assert_array_equal(file["P1"], with_more.log_likelihood(0))
        assert file["P1"].dtype == np.float32
    with h5py.File(place / "per_protein.mean.layer2.h5") as file:
        np.testing.assert_array_equal(file[".."], with_more.vector("..", layer=2))
        assert file.attrs["array"] == "mean.layer2"


def test_h5_by_accession_is_called_as_protspace_calls_proteins(export, with_more):
    place = export("--format", "h5", "--keys", "accession", "--arrays", "mean")
    with h5py.File(place / "per_protein.h5") as file:
        for row, key in {
            2: "P12345",
            7: "A0A0B4J2F0",
            8: "long",
            0: "P1",
            1: "P1%2F1-20~2",
        }.items():
            np.testing.assert_array_equal(file[key], with_more.vector(row))
    assert ["2", "sp|P12345|ONE_HUMAN", "P12345"] in table(place / "per_protein.h5.ids.tsv")


def test_h5_for_biotrainer_is_called_by_its_hash_and_holds_each_sequence_once(export, with_more):
    """As `EmbeddingService.store_embedding` and `load_embeddings` of biotrainer 1.4 have it."""
    place = export("--format", "h5", "--keys", "biotrainer")
    hashes = [hashlib.sha256(f"{s}_{len(s)}".encode()).hexdigest() for s in SEQUENCES]
    for name, of in (("per_protein.h5", with_more.vector), ("per_residue.h5", with_more.residues)):
        with h5py.File(place / name) as file:
            assert set(file) == set(hashes) and len(set(hashes)) < len(hashes)
            for row, key in enumerate(hashes):
                np.testing.assert_array_equal(file[key][:], of(row))
                assert file[key].compression == "gzip"
                assert file[key].attrs["original_id"] == IDS[hashes.index(key)].replace("\0", "%00")
    assert [line[2] for line in table(place / "per_protein.h5.ids.tsv")[1:]] == hashes


def test_the_same_results_give_the_same_bytes(export):
    for more in (["h5"], ["h5", "--keys", "biotrainer"], ["skbio"], ["parquet"]):
        first, second = (export("--format", *more) for _ in range(2))
        for path in first.iterdir():
            assert path.read_bytes() == (second / path.name).read_bytes()


# scikit-bio


def test_scikit_bio_reads_vectors_and_residues(export, with_more):
    skbio = pytest.importorskip("skbio", reason="scikit-bio is not installed")
    place = export("--format", "skbio", "--arrays", "mean,residue,mean.layer2")
    proteins = list(skbio.io.read(str(place / "residue.embed.h5"), format="embed"))
    assert [protein.sequence for protein in proteins] == [s[:MAX_LENGTH] for s in SEQUENCES]
    for row, protein in enumerate(proteins):
        np.testing.assert_array_equal(protein.embedding, with_more.residues(row))
        assert protein.embedding.dtype == np.float32
    for layer, name in ((None, "mean"), (2, "mean.layer2")):
        path = str(place / f"{name}.embed.h5")
        vectors = skbio.io.read(
            path, format="embed", constructor=skbio.embedding.ProteinVector, verify=True
        )
        vectors = list(vectors)
        assert [vector.sequence for vector in vectors] == list(SEQUENCES)
        found = skbio.embedding.embed_vec_to_numpy(vectors)
        np.testing.assert_array_equal(found, with_more.array("mean", layer=layer))
    head, *lines = table(place / "mean.embed.h5.ids.tsv")
    assert head == ["row", "id", "key"] and lines[2] == ["2", "sp|P12345|ONE_HUMAN", "2"]
    assert len(lines) == len(IDS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("MKT", "MKA", 1), "record 1 is another one"),
        (lambda text: text[: text.rindex(">")], "record 11 is another one, or is missing"),
        (lambda text: text + ">more\nMKT\n", "there are more than 11 records"),
    ],
)
def test_other_sequences_than_were_embedded_are_refused(
    exporting, with_more, tmp_path, capsys, change, words
):
    fasta = tmp_path / "other.fasta"
    fasta.write_text(change((exporting / "in.fasta").read_text()))
    arguments = ["export", str(with_more.path), "--format", "skbio", "-o", str(tmp_path / "x")]
    assert main([*arguments, "--fasta", str(fasta)]) == 2
    error = capsys.readouterr().err
    assert words in error and str(fasta) in error
    assert not (tmp_path / "x").exists()


def test_sequences_that_lie_elsewhere_now_are_asked_for(own, exporting, tmp_path, capsys):
    from packedesm.files import read_record, write_record

    manifest = read_record(own / "manifest.json")
    moved = tmp_path / "moved.fasta"
    moved.write_text((exporting / "in.fasta").read_text() + ">empty\n\n")
    manifest["request"]["inputs"][0]["path"] = str(tmp_path / "gone.fasta")
    write_record(own / "manifest.json", manifest)
    arguments = ["export", str(own), "--format", "skbio"]
    assert main(arguments) == 2
    assert "gone.fasta is not there; give their FASTA with --fasta" in capsys.readouterr().err
    assert main([*arguments, "--fasta", str(moved)]) == 0
    write_record(own / "manifest.json", manifest | {"request": None})
    assert main(arguments) == 2
    assert "do not tell where they were read" in capsys.readouterr().err


# Parquet


@pytest.fixture(scope="module")
def parquet(export) -> str:
    place = export("--format", "parquet")
    return str(place / "per_protein.parquet")


def test_pandas_reads_the_table(parquet, with_more):
    found = pd.read_parquet(parquet)
    index = with_more.index
    pd.testing.assert_frame_equal(found[index.columns.tolist()], index)
    for name in ("mean", "cls"):
        np.testing.assert_array_equal(np.stack(found[name]), with_more.array(name))
        assert found[name][0].dtype == np.float32
    np.testing.assert_array_equal(found["pseudo_perplexity"], with_more.array("pseudo_perplexity"))


def test_polars_reads_the_table(parquet, with_more):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    found = polars.read_parquet(parquet)
    assert found.schema["mean"] == polars.Array(polars.Float32, 64)
    assert found["id"].to_list() == list(IDS)
    np.testing.assert_array_equal(found["mean"].to_numpy(), with_more.array())


def test_duckdb_reads_the_table(parquet, with_more):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    rows = duckdb.sql(
        f"select id, mean, pseudo_perplexity from '{parquet}' order by row"
    ).fetchall()
    assert [row[0] for row in rows] == list(IDS)
    np.testing.assert_array_equal([row[1] for row in rows], with_more.array())
    np.testing.assert_array_equal([row[2] for row in rows], with_more.array("pseudo_perplexity"))


def test_the_table_has_groups_of_rows_whatever_those_of_the_index_are(own, monkeypatch, tmp_path):
    import pyarrow.parquet as pq

    from packedesm.results.exports import parquet

    pq.write_table(pq.read_table(own / "index.parquet"), own / "index.parquet", row_group_size=2)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 3 * 4 * 64)
    path = tmp_path / "x.parquet"
    arguments = ["export", str(own), "--format", "parquet", "--arrays", "mean"]
    assert main([*arguments, "-o", str(path)]) == 0
    assert pq.ParquetFile(path).num_row_groups == 4
    found, results = pd.read_parquet(path), packedesm.open(own)
    np.testing.assert_array_equal(np.stack(found["mean"]), results.array())
    assert found["id"].tolist() == results.ids


# What formats hold


def test_the_schema_and_the_table_of_formats_are_one_list():
    from packedesm.config import schema

    assert schema()["properties"]["exports"]["items"]["enum"] == list(formats.FORMATS)


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        (["mean", "residue", "cls"], ["mean", "residue"]),
        (["cls"], ["cls"]),
        (["max", "cls"], ["max"]),
        (["mean.layer2", "mean"], ["mean"]),
        (["mean.layer3", "mean.layer2"], ["mean.layer3"]),
        (["logits"], ["logits"]),
    ],
)
def test_h5_takes_what_there_is(outputs, chosen):
    found = formats.FORMATS["h5"].choose(outputs)
    assert [array.name for array in found] == chosen


def test_an_export_that_no_output_allows_is_refused_before_the_run():
    with pytest.raises(packedesm.UserError, match="format parquet holds mean, cls, max"):
        configured.expect_possible(["h5", "parquet"], ["residue"])
