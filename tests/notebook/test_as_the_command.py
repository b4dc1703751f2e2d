"""In memory comes what the command writes, bit by bit."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import packedesm
from packedesm.cli import main
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.model_files import regression_file
from packedesm.outputs import OUTPUTS, Array
from packedesm.progress import telling
from packedesm.sequences.fasta import read_records
from tests.sharp import GEOMETRY

ASKED = {
    "outputs": ["mean", "cls", "max", "residue"],
    "layers": [0, 2, "last"],
    "max_length": 120,
    "token_budget": 2000,
}
KINDS = [{}, {"long_sequences": "window", "window_overlap": 40}]


def both(fasta: Path, folder: Path, asked: dict) -> tuple[packedesm.Results, packedesm.Embeddings]:
    """Return what the command gives for a file, and what a call gives."""
    flags = ["--device", "cpu", "--verify-sequences", "0"]
    for key, value in asked.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        flags += [f"--{key.replace('_', '-')}", text]
    threads = torch.get_num_threads()
    of_command: list[int] = []
    told: list[int] = []
    try:
        with telling(of_command.append):
            assert main(["embed", str(fasta), "-o", str(folder / "out"), *flags]) == 0
        # Sums over residues are made by as many threads: those that the command has set.
        keys = {"device": "cpu", "check": False, "progress": told.append}
        found = packedesm.embed(fasta, **keys, **asked)
    finally:
        torch.set_num_threads(threads)
    # Packs are the same too, which not every machine shows in its bits. The last thing that the
    # command tells of is embedding, which begins with 0.
    begin = len(of_command) - of_command[::-1].index(0) - 1
    assert told == of_command[begin:]
    return packedesm.open(folder / "out"), found


@pytest.fixture(scope="module", params=KINDS, ids=["truncate", "window"])
def pair(request, sixty, tmp_path_factory) -> tuple[packedesm.Results, packedesm.Embeddings]:
    """Sixty records, both ways."""
    return both(sixty, tmp_path_factory.mktemp("command"), {**ASKED, **request.param})


def test_every_array_is_the_same_bit_by_bit(pair):
    results, found = pair
    assert found.arrays == results.arrays
    assert len(found.arrays) == 12
    for name in results.arrays:
        expected = results.array(name)
        assert found.array(name).dtype == expected.dtype == np.float32
        assert found.array(name).tobytes() == expected.tobytes(), name
    assert found.offsets("residue").tolist() == results.offsets("residue").tolist()


def test_so_is_the_index_with_flags_and_duplicates(pair):
    results, found = pair
    pd.testing.assert_frame_equal(found.index, results.index)
    assert found.index["duplicate_of"].notna().sum() == 3
    assert found.index["flags"].str.contains("truncated|windowed").sum() > 20
    assert found.ids == results.ids


def test_so_is_what_heads_and_masked_passes_say(eight, tmp_path):
    outputs = [*OUTPUTS]
    model = tmp_path / "small.pt"
    write_random_checkpoint(model, GEOMETRY, seed=3)
    write_random_regression(regression_file(model), GEOMETRY, seed=3)
    asked = {"model": model, "outputs": outputs, "layers": [1, -1], "max_length": 25}
    results, found = both(eight, tmp_path, {**asked, "token_budget": 100})
    assert found.arrays == results.arrays
    assert {Array.named(name).output.name for name in found.arrays} == set(outputs)
    for name in results.arrays:
        assert found.array(name).tobytes() == results.array(name).tobytes(), name
    assert np.array_equal(found.contacts(3), results.contacts(3))
    assert found.contacts(3).shape == (25, 25)
    assert found.columns("logits") == results.columns("logits")


def test_the_interface_is_that_of_open(pair):
    results, found = pair
    assert len(found) == len(results) == 60
    name = found.ids[40]
    for record in (5, name):
        for layer in (0, 2, None):
            same = found.residues(record, layer), results.residues(record, layer)
            assert np.array_equal(*same)
            same = found.vector(record, "max", layer), results.vector(record, "max", layer)
            assert np.array_equal(*same)
    for key in ("records", "residues", "dtype", "attention", "arrays"):
        assert found.manifest[key] == results.manifest[key]
    for key, value in found.manifest["model"].items():
        if key != "path":
            assert results.manifest["model"][key] == value
    with pytest.raises(packedesm.UserError, match="holds mean"):
        found.array("mean", layer=5)
    with pytest.raises(KeyError, match="no record has the id"):
        found.vector("nobody")


@pytest.mark.parametrize("form", [dict, pd.Series, "list", "generator", "path"])
def test_however_the_sequences_come_the_numbers_are_the_same(form, sixty, demo, capfd):
    records = list(read_records(sixty))
    expected = demo.embed(sixty, max_length=30)
    if form == "path":
        found = demo.embed(str(sixty), max_length=30)
    elif form == "list":
        found = demo.embed([r.sequence.decode() for r in records], max_length=30)
    elif form == "generator":
        found = demo.embed((r.sequence.decode() for r in records), max_length=30)
    else:
        pairs = {r.id: r.sequence.decode() for r in records}
        found = demo.embed(form(pairs), max_length=30)
        assert found.ids == list(pairs)
        order = [expected.row(name) for name in pairs]
        assert np.array_equal(found.array(), expected.array()[order])
        return
    assert np.array_equal(found.array(), expected.array())
    if form != "path":
        assert found.ids == [str(place) for place in range(60)]
    assert not capfd.readouterr().out


def test_nothing_is_written_and_no_process_is_started(demo, sixty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.embed(sixty, max_length=50)
    assert not list(tmp_path.iterdir())
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]


def test_workers_that_are_asked_for_change_no_bit(demo, sixty):
    expected = demo.embed(sixty, max_length=60, token_budget=500)
    found = demo.embed(sixty, max_length=60, token_budget=500, workers=1)
    assert np.array_equal(found.array(), expected.array())


def test_half_precision_files_are_asked_for_as_of_the_command(demo):
    found = demo.embed(["MKTAYIAKQR"], output_dtype="float16")
    assert found.array().dtype == np.float16
    assert found.array(copy=True).dtype == np.float32


def test_an_empty_list_has_empty_arrays_of_the_right_shape(demo):
    found = demo.embed([], outputs=["mean", "residue"], layers=[1, "last"])
    assert len(found) == 0
    assert {found.array(name).shape for name in found.arrays} == {(0, 192)}
    assert found.offsets("residue").tolist() == [0]
    assert found.index.empty
    assert found.ids == []


def test_every_output_of_the_house_is_made_or_refused_by_name(demo):
    """Of the 3M model, whose checkpoint may hold heads: none fails in another way."""
    for output in OUTPUTS:
        try:
            found = demo.embed(["MKTAYIAKQR"], output)
        except packedesm.UserError:
            continue
        assert found.arrays == [output]
