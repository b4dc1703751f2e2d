"""The comparison with other programs: it runs, its parts are fair, the README tells its figures."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry

from benchmarks.comparison import Comparison
from benchmarks.contenders import BASE, CPU, CUDA, Entry
from benchmarks.contenders.base import in_input_order, mean_over_residues, padded_plan
from benchmarks.contenders.weights import hugging_face_state
from benchmarks.limits import Sizes
from benchmarks.sample import draw
from benchmarks.table import committed, for_terminal, line, ratio, with_table
from packedesm.files import read_json
from tests.workflow import ROOT

SMALL = Geometry(layers=2, width=32, heads=2)
OURS = Entry("packedesm, forward only", "ours", "float32", {"attention": "sdpa"}, (64, 128))
IMPOSSIBLE = Entry("packedesm, fa3", "ours", "bfloat16", {"attention": "fa3"})


def test_readme_table_is_made_from_the_committed_results():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_table(readme, committed()) == readme


@pytest.fixture(scope="module")  # half a minute: four processes import torch
def compared(tmp_path_factory, uniprot_500) -> dict:
    saved = []
    comparison = Comparison(
        SMALL,
        draw(uniprot_500, 4, 60, seed=1),
        device="cpu",
        threads=1,
        scratch=tmp_path_factory.mktemp("comparison"),
        deadline=time.monotonic() + 300,
        save=lambda result: saved.append(len(result["rows"])),
        say=print,
        limit_sizes=Sizes(side=256, tokens=64, copied=1 << 20, written=1 << 20),
    )
    comparison.run([OURS, BASE, IMPOSSIBLE], repeats=2)
    assert saved == sorted(saved) and saved[0] == 1  # from the first row on
    return comparison.result


@pytest.mark.slow
@pytest.mark.benchmarks
def test_every_contender_is_timed_and_compared_with_the_reference(compared):
    ours, fair_esm, _ = compared["rows"]
    for row in (ours, fair_esm):
        assert row["reason"] is None
        assert len(row["seconds"]) == 2
        assert 0 < row["tokens_per_second_min"] <= row["tokens_per_second_max"]
        assert row["residues_per_second"] < row["tokens_per_second"]
        assert row["mfu"] > 0 and row["peak_bytes"] > 0
        assert row["relative_l2"]["worst"] < 1e-5
    assert set(ours["trials"]) == {64, 128} and ours["budget"] in ours["trials"]
    assert {name.partition(" ")[0] for name in compared["limits"]} >= {"matmul", "qkv", "fc2"}
    assert all(figures["min"] > 0 for figures in compared["limits"].values())
    assert ratio(ours, fair_esm) > 0


@pytest.mark.slow
@pytest.mark.benchmarks
def test_a_contender_that_cannot_run_is_a_row_with_its_reason(compared):
    row = compared["rows"][2]
    assert "needs an NVIDIA GPU" in row["reason"]
    assert not row["seconds"] and "NVIDIA" in line(compared, row)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_command_writes_json_and_prints_the_table(tmp_path):
    options = ["--models", "esm2_tiny_random", "--records", "2", "--repeats", "1", "--first", "1"]
    options += ["--device", "cpu", "--results", tmp_path, "--scratch", tmp_path]
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "cpu-esm2_tiny_random.json")
    assert [row["name"] for row in result["rows"]] == [CPU[0].name, BASE.name]
    assert result["conditions"]["versions"]["torch"]
    assert done.stdout.endswith(for_terminal(result) + "\n")


def test_no_two_rows_have_one_key_and_both_devices_have_the_base():
    for entries in (CPU, CUDA):
        assert len({entry.key for entry in entries}) == len(entries)
        assert BASE.key in {entry.key for entry in entries}


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 200), st.booleans())
def test_padded_batches_hold_every_record_once_within_the_budget(lengths, budget, length_sorted):
    plan = padded_plan(lengths, budget, length_sorted)
    assert Counter(item for batch in plan for item in batch) == Counter(range(len(lengths)))
    for batch in plan:
        longest = max(lengths[item] for item in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_padded_batches_are_as_full_as_the_budget_allows():
    assert padded_plan([3, 1, 2, 3], 6, length_sorted=True) == [[0, 3], [2, 1]]
    assert padded_plan([3, 1, 2, 3], 6, length_sorted=False) == [[0, 1], [2, 3]]


def test_mean_leaves_out_cls_eos_and_padding():
    hidden = torch.tensor([[9.0, 1, 3, 9], [9, 5, 9, 7]])[:, :, None].half()
    mean = mean_over_residues(hidden, torch.tensor([2, 1]))
    assert mean.dtype == torch.float32
    assert in_input_order(mean, [1, 0]).tolist() == [[5], [2]]


def test_sample_has_the_lengths_of_the_file_and_is_drawn_again(uniprot_500):
    drawn = draw(uniprot_500, 50, 1022, seed=1)
    assert drawn == draw(uniprot_500, 50, 1022, seed=1) != draw(uniprot_500, 50, 1022, seed=2)
    everything = [len(sequence) for sequence in draw(uniprot_500, 500, 1022, seed=1)]
    lengths = [len(sequence) for sequence in drawn]
    assert np.median(lengths) == pytest.approx(np.median(everything), rel=0.05)
    assert np.mean(lengths) == pytest.approx(np.mean(everything), rel=0.05)
    assert len(draw(uniprot_500, 1000, 1022, seed=1)) == 1000


def test_hugging_face_names_lead_back_to_the_same_weights(tmp_path: Path):
    write_random_checkpoint(tmp_path / "small.pt", SMALL, seed=1)
    _, state = load_state(tmp_path / "small.pt")
    named = hugging_face_state(state)
    assert len(named) == len(state)
    assert (
        named["encoder.layer.1.attention.self.query.weight"]
        is (state["layers.1.self_attn.q_proj.weight"])
    )
    assert named["encoder.layer.0.output.dense.bias"] is state["layers.0.fc2.bias"]
