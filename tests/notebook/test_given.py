"""What is wrong with an item is told by its place and id, and what to do; the rest is cleaned."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import packedesm
from packedesm.packing.batch import PackedBatch

REFUSED = [
    (["MKT", "M1"], r"item 1: character '1' at residue 2 is no amino acid; numbers"),
    ({"a": "MKT", "b": "M\nK V"}, r"item 1 \('b'\): character ' ' at residue 3 is no amino acid"),
    (["MKT", None], "item 1: is no sequence, it is of type NoneType; leave out what is missing"),
    (
        ["MKT", float("nan")],
        "item 1: is no sequence, it is of type float; leave out what is",
    ),
    ([pd.NA], "item 0: is no sequence, it is of type NAType; leave out what is missing"),
    ([3.5], "item 0: is no sequence, it is of type float; give each sequence as a text"),
    ([("P1", "MKT")], r"item 0: is no sequence, it is of type tuple; .*dict\(pairs\)"),
    (["MetLysThr"], "item 0: the sequence is written in three-letter code"),
    (["MK\udcff"], "item 0: .*is no amino acid"),
    ([">a\nMKT"], "item 0: is a FASTA record; give the sequence alone"),
    ([""], "item 0 has no residues; remove it or set empty_sequences to skip"),
    ({None: "MKT"}, "item 0 .*its id is empty or no text"),
    ({"a": "MKT", pd.NA: "MKV"}, "item 1 .*its id is empty"),
    (pd.Series(["MKT", "MKV"], ["a", float("nan")]), "item 1 .*its id is empty"),
    ({"": "MKT"}, r"item 0 \(''\): its id is empty"),
    ({"\udc80": "MKT"}, "its id is empty or no text"),
    ({1: "MKT", "1": "MKV"}, r"1 record with the id of an earlier, different sequence: '1' \(it"),
    (pd.Series(["MKT", "MKV"], ["a", "a"]), r"'a' \(items 0 and 1\); make the ids unique"),
    ("MKTAYIAKQR", "one text is the path of a FASTA file, and there is none; .*list of one"),
    ("MKTAYIAKQR*" * 100, "one text is the path of a FASTA file, and there is none; .*list of one"),
    ("MKT AYI", "'MKT AYI': one text is the path of a FASTA file, and there is none"),
    ("no/such.fasta", "'no/such.fasta': one text is the path of a FASTA file, and there is none"),
    ("a\0b", r"'a\\x00b': one text is the path"),
    (Path("no/such.fasta"), r"no/such\.fasta: cannot be read \(No such file"),
    ("", "the text is empty; give a list of sequences, a mapping of id to sequence, or the path"),
    (" \n", "the text is empty; give a list"),
    (">a\nMKT", "the text is FASTA itself, .* give a mapping of id to sequence, or write it to"),
    ([__file__], "item 0: is the name of a file; give the path of a FASTA file in place of a list"),
    ([Path(__file__)], "item 0: .* of type PosixPath; give the path of a FASTA file in place of"),
    ({"a": ["MKT"]}, r"item 0 \('a'\): is no sequence, it is of type list; give each"),
    ({b"a": "MKT"}, "its id is empty or no text"),
    ([b"MKT"], "item 0: is no sequence, it is of type bytes; give each sequence as a text"),
    (None, "sequences: is of type NoneType; give a list of sequences, a mapping"),
    (b"MKT", "sequences: is of type bytes; give a list of sequences"),
    (bytearray(b"MKT"), "sequences: is of type bytearray; give a list of sequences"),
    ({"MKT"}, "sequences: is of type set; give a list of sequences"),
    (7, "sequences: is of type int; give a list of sequences"),
    (pd.DataFrame({"sequence": ["MKT"]}), "a table has several columns"),
]


@pytest.mark.parametrize(("sequences", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_a_protein_is_refused_by_place_and_id(sequences, message, demo):
    for take in (demo.embed, packedesm.pack):
        with pytest.raises(packedesm.UserError, match=message) as caught:
            take(sequences)
        assert "\n" not in str(caught.value)
        assert "(line" not in str(caught.value)


OPTIONS = [
    ({"outputs": "meen"}, "'meen' is not allowed; give one of mean"),
    ({"layers": 9}, r"the model has no layer 9; it has 0 \(the embeddings\) to 6"),
    ({"maxlength": 9}, r"embed\(\) takes no 'maxlength'; did you mean 'max_length'\?"),
    ({"shards": 2}, r"embed\(\) takes no 'shards'"),
    ({"token_budget": 3}, "token_budget: 3 is not allowed"),
    ({"deduplicate": 1}, "deduplicate: 1 is not allowed; give true or false"),
    ({"progress": "yes"}, "progress: 'yes' is neither true, false nor a function"),
    ({"max_length": {}}, "max_length: {} is not allowed"),
    ({"max_length": 2, "long_sequences": "error"}, "item 0 has 3 residues, more than max_length"),
    ({"max_length": 5, "long_sequences": "window"}, r"window_overlap \(256\) must be smaller"),
]


@pytest.mark.parametrize(("keys", "message"), OPTIONS)
def test_so_is_an_option_that_the_schema_does_not_allow(keys, message, demo):
    demo.embed(["MKT"], deduplicate=True)
    with pytest.raises(packedesm.UserError, match=message):
        demo.embed(["MKT"], **keys)


MODELS = [
    ("", "model: '' is not allowed; give a non-empty text"),
    (None, "model: is of type NoneType; give a name that `packedesm models` lists"),
    (["MKT"], "model: is of type list; give a name"),
    (b"x.pt", "model: is of type bytes; give a name"),
    ("my.fasta", r"my\.fasta: not a checkpoint, it is FASTA; name a .pt file"),
    ("notes.txt", r"notes\.txt: not a checkpoint, or damaged \(it does not begin as one\)"),
    ("https://host/m.pt", "is a web address"),
]


@pytest.mark.parametrize(("model", "message"), MODELS)
def test_what_is_no_model_is_told_as_what_it_is(model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.fasta").write_text(">a\nMKT\n")
    (tmp_path / "notes.txt").write_text("hello there\n")
    for load in (packedesm.load_model, lambda model: packedesm.embed(["MKT"], model)):
        with pytest.raises(packedesm.UserError, match=message) as caught:
            load(model)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("checkpoints", None, "checkpoints: None is not allowed; give a non-empty text"),
        ("checkpoints", "", "checkpoints: '' is not allowed"),
        ("device", None, "device: None is none here; say auto, cpu, cuda"),
        ("device", "gpu", "device: 'gpu' is none here; say auto"),
    ],
)
def test_so_is_a_place_of_models_or_a_device_that_is_none(key, value, message):
    with pytest.raises(packedesm.UserError, match=message) as caught:
        packedesm.load_model(**{key: value})
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(demo):
    keys = {"max_length": np.int64(2), "layers": np.arange(2)}
    found = demo.embed(["MKT"], **keys)
    assert found.arrays == ["mean.layer0", "mean.layer1"]
    assert found.index["embedded_length"].tolist() == [2]


def test_what_a_file_may_hold_a_list_may_too(demo, caplog):
    texts = ["mkt*", "MK\r\nTAY\n", " MKT ", "MJ*K", "X" * 30, "ACGT" * 6]
    index = demo.embed(texts).index
    assert index["flags"].tolist() == [
        "upper_cased,stop_removed",
        "",
        "",
        "stop_replaced,j_replaced",
        "unknown_only",
        "nucleotide_like",
    ]
    assert index["length"].tolist() == [3, 5, 3, 4, 30, 24]
    assert index["duplicate_of"].tolist()[2] == 0
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("looks like DNA or RNA" in line and "'5'" in line for line in said)


def test_records_without_residues_are_left_out_if_so_asked(demo):
    found = demo.embed({"a": "", "b": "MKT", "c": "*"}, empty_sequences="skip")
    assert found.ids == ["b"]
    assert found.index[["row", "record"]].values.tolist() == [[0, 2]]
    assert len(demo.embed(["", "*"], empty_sequences="skip")) == 0


def test_a_file_without_records_is_no_empty_list(tmp_path, demo):
    path = tmp_path / "empty.fasta"
    path.write_text(">a\n\n")
    with pytest.raises(packedesm.UserError, match="no record has residues"):
        demo.embed(path, empty_sequences="skip")


def test_a_pack_holds_sequences_in_their_order_repeats_included(tmp_path):
    batch = packedesm.pack({"a": "MKT", "b": "GIGAV", "c": "mkt"})
    assert isinstance(batch, PackedBatch)
    assert batch.lengths == (5, 7, 5)
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.input_ids[:5].tolist() == batch.input_ids[12:].tolist() == [0, 20, 15, 11, 2]
    windows = packedesm.pack(["MKTAY"], long_sequences="window", max_length=3, window_overlap=1)
    assert windows.lengths == (5, 5)
    fasta = tmp_path / "a.fasta"
    fasta.write_text(">a\nMKT\n>b\nGIGAV\n")
    assert packedesm.pack(str(fasta)).lengths == packedesm.pack(fasta).lengths == (5, 7)
    with pytest.raises(packedesm.UserError, match="there is none; a pack holds at least one"):
        packedesm.pack([])
    with pytest.raises(packedesm.UserError, match=r"pack\(\) takes no 'token_budget'"):
        packedesm.pack(["MKT"], token_budget=64)


def test_a_path_may_begin_at_home(tmp_path, demo, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.fasta").write_text(">a b\nMKT\n")
    assert demo.embed("~/a.fasta").ids == ["a"]
    assert demo.embed(Path("~/a.fasta"), ids="header").ids == ["a b"]
