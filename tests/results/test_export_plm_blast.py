"""Exports for pLM-BLAST, read as its code reads them.

It is no package, and needs versions of numpy and MKL of its own; so this follows its code line by
line: github.com/labstructbioinf/pLM-BLAST, commit 4dddea3.
"""

import logging
import re

import numpy as np
import pytest
import torch

import packedesm
from tests.commands import the_line
from tests.results.exported import (
    LIMIT,
    RECORDS,
    add_array,
    copied,
    export,
    id_table,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, short_results):
    return copied(short_results, tmp_path_factory.mktemp("plm"))


@pytest.fixture(scope="module")
def folder(results):
    assert export(results, "--format", "plm-blast") == 0
    return results / "exports" / "plm-blast"


def index_of(database):
    """Return id, description and sequence of each record.

    ``find_file_extention`` and ``read_input_file`` in ``alntools/filehandle.py``: of the files
    with the name of the folder a CSV or a pickle would come before this one; Biopython's
    ``SeqIO.parse`` takes the first word of a header as the id, and all of it as the description.
    """
    there = [database.with_suffix(end) for end in (".csv", ".p", ".pkl", ".fas", ".fasta")]
    path = next(path for path in there if path.is_file())
    assert path.suffix == ".fas"
    records = path.read_text("utf-8").split(">")[1:]
    heads = [record.split("\n", 1)[0].rstrip() for record in records]
    sequences = ["".join(record.split("\n")[1:]).replace(" ", "").upper() for record in records]
    return [
        (head.split(None, 1)[0], head, sequence)
        for head, sequence in zip(heads, sequences, strict=True)
    ]


def load(database, row):
    """Return the vectors of a record: ``DataObject.dirfiles``, ``BatchLoader._load_batch``."""
    return torch.load(database / f"{row}.emb").float().numpy()


def test_each_record_of_the_index_has_its_vectors_at_its_number(results, folder):
    opened = packedesm.open(results)
    index = index_of(folder / "database")
    assert len(index) == len(RECORDS) == len(list((folder / "database").iterdir()))
    for row, (name, head, sequence) in enumerate(index):
        vectors = load(folder / "database", row)
        expected = opened.residues(row)
        assert vectors.shape == expected.shape
        assert len(sequence) == len(vectors)
        np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-6)  # float16
        assert head.startswith(name)
    assert index[0][1] == "plain first of all"
    assert index[12][2] == RECORDS[12][2][:LIMIT]


def test_a_file_is_of_half_precision_as_its_own_embedder_writes_it(folder):
    """``save_as_separate_files`` in ``embedders/base.py``."""
    saved = torch.load(folder / "database" / "0.emb", weights_only=True)
    assert saved.dtype == torch.float16
    assert saved.untyped_storage().nbytes() == 2 * saved.numel()


def test_no_id_is_there_twice_and_none_is_cut_silently(results, folder):
    """``read_input_file``: where one id is there twice, it takes numbers instead of all."""
    names = [name for name, _, _ in index_of(folder / "database")]
    assert len(set(names)) == len(names)
    table = id_table(results / "exports" / "plm-blast.ids.tsv")
    assert table == {7: ("twice", "twice~2")}
    assert names[1:4] == ["a/b", "A/B", "../out"]


def test_letters_that_cannot_be_drawn_are_x(folder):
    """``RESIDUES`` and ``RESIDUE_GROUPS`` in ``alntools/settings.py``, and who looks there."""
    index = index_of(folder / "database")
    assert index[9][2] == "MXXXXXKR"
    residues, groups = "ARNDCQEGHILKMFPSTWYVBZX*", "GAVLI FYW CM ST KRH DENQ P - X"
    for _, _, sequence in index:
        assert set(sequence) <= set(residues) & set(groups)


def test_ids_of_several_words_are_escaped_and_numbers_that_are_too_large_stay(
    tmp_path, checkpoints, caplog
):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">one two\nMKTAY\n>three\u00a0four\nMKV\n")
    out = tmp_path / "out"
    options = ["--checkpoints", str(checkpoints), "--model", "esm2_tiny_random", "--ids", "header"]
    options += ["--outputs", "residue", "--verify-sequences", "1"]
    assert packedesm.cli.main(["embed", str(fasta), "-o", str(out), *options]) == 0
    values = np.array(packedesm.open(out).array("residue"))
    values[6, 0] = 1e5
    add_array(out, "residue.layer1", values)
    place = tmp_path / "plm-blast.layer1"
    arguments = ["--format", "plm-blast", "--arrays", "residue.layer1", "-o", str(tmp_path)]
    with caplog.at_level(logging.WARNING):
        assert export(out, *arguments) == 0
    assert [entry[0] for entry in index_of(place / "database")] == ["one%20two", "three%C2%A0four"]
    assert torch.load(place / "database" / "0.emb").dtype == torch.float16
    np.testing.assert_array_equal(load(place / "database", 1), values[5:])
    assert "one%20two" in caplog.text


def test_records_of_one_residue_are_told_of(results, tmp_path, caplog):
    """``calculate_pool_embs`` in ``alntools/density/local.py`` squeezes their only axis away."""
    with caplog.at_level(logging.WARNING):
        assert export(results, "--format", "plm-blast", "-o", str(tmp_path / "plm")) == 0
    assert re.search("1 record of one residue.*-cpc 0", caplog.text)


def test_without_the_sequences_there_is_one_line_and_no_folder(results, tmp_path, capsys):
    changed = copied(results, tmp_path)
    other = tmp_path / "other.fasta"
    other.write_text(">plain\nMKT\n")
    place = tmp_path / "plm"
    arguments = ["--format", "plm-blast", "-o", str(place), "--fasta", str(other)]
    assert export(changed, *arguments) == 2
    assert "not what was embedded" in the_line(capsys.readouterr().err)
    assert not place.exists()
    assert not list(tmp_path.glob(".packedesm-*"))
