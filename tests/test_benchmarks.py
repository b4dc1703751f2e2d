"""The comparison with other programs: it runs, its parts are fair, the README tells its figures."""

import json
import os
import re
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

from benchmarks import whole
from benchmarks.comparison import Comparison
from benchmarks.contenders import BASE, CPU, CUDA, Entry
from benchmarks.contenders.base import in_input_order, mean_over_residues, padded_plan
from benchmarks.contenders.weights import hugging_face_state
from benchmarks.limits import Sizes, load
from benchmarks.sample import draw
from benchmarks.table import committed, for_readme, for_terminal, line, ratio, with_table
from benchmarks.worker import Answer, Failed
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.files import read_json
from tests.workflow import ROOT

SMALL = Geometry(layers=2, width=32, heads=2)
OURS = Entry("packedesm, forward only", "ours", "float32", {"attention": "sdpa"}, (64, 128))
HALF = Entry("packedesm, forward only", "ours", "bfloat16", {"attention": "auto"}, (128,))
# Neither the contender nor products of its dtype.
IMPOSSIBLE = Entry("packedesm, fa3", "ours", "uint16", {"attention": "fa3"})
SIZES = Sizes(side=256, tokens=64, copied=1 << 20, written=1 << 20)


def test_readme_table_is_made_from_the_committed_results():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_table(readme, committed()) == readme


def test_readme_table_of_whole_processes_is_made_from_the_committed_results():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert whole.with_table(readme, whole.committed()) == readme


@pytest.mark.slow
@pytest.mark.benchmarks
def test_whole_processes_are_timed_and_compared_with_fair_esm(tmp_path, uniprot_500):
    write_random_checkpoint(tmp_path / "small.pt", SMALL, seed=1)
    fasta = tmp_path / "some.fasta"
    fasta.write_text("".join(f">{n}\n{x}\n" for n, x in enumerate(draw(uniprot_500, 4, 60, 1))))
    saved = []
    job = whole.Job(tmp_path / "small.pt", fasta, tmp_path, dict(os.environ))
    count = lambda rows: saved.append(sum(len(row["seconds"]) for row in rows))  # noqa: E731
    rows = whole.measure(job, whole.DTYPES[""], 1, count)
    assert saved == [1, 2, 3, 4, 4]
    assert [(row["name"], row["dtype"]) for row in rows[:2]] == [
        ("fair-esm", "float32"),
        ("packedesm embed", "float32"),
    ]
    assert rows[0]["budget"] in rows[0]["trials"]
    for row, bar in zip(rows[1:], (1e-5, 0.02, 0.05), strict=True):
        assert 0 < row["relative_l2"]["median"] <= row["relative_l2"]["worst"] < bar
        assert row["seconds"][0] > 0 < row["cpu_seconds"][0]


@pytest.fixture(scope="module")  # half a minute: five processes import torch
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
        limit_sizes=SIZES,
    )
    comparison.run([OURS, BASE, HALF, IMPOSSIBLE], repeats=2)
    assert saved == sorted(saved) and saved[0] == 1  # from the first row on
    return comparison.result


@pytest.mark.slow
@pytest.mark.benchmarks
def test_every_contender_is_timed_and_compared_with_the_reference(compared):
    ours, fair_esm, half, _ = compared["rows"]
    for row in (ours, fair_esm, half):
        assert row["reason"] is None
        assert len(row["seconds"]) == 2
        assert 0 < row["tokens_per_second_min"] <= row["tokens_per_second_max"]
        assert row["residues_per_second"] < row["tokens_per_second"]
        assert row["mfu"] > 0 and row["peak_bytes"] > 0
        assert row["relative_l2"]["worst"] < (0.02 if row is half else 1e-5)
    assert set(ours["trials"]) == {64, 128} and ours["budget"] in ours["trials"]
    assert {name.partition(" ")[0] for name in compared["limits"]} >= {"matmul", "qkv", "fc2"}
    measured = [x for name, x in compared["limits"].items() if "uint16" not in name]
    assert all(figures["min"] > 0 and "reason" not in figures for figures in measured)
    assert ratio(ours, fair_esm) > 0


@pytest.mark.slow
@pytest.mark.benchmarks
def test_a_contender_that_cannot_run_is_a_row_with_its_reason(compared):
    row = compared["rows"][3]
    assert "needs an NVIDIA GPU" in row["reason"]
    assert not row["seconds"] and "NVIDIA" in line(compared, row)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_a_product_that_cannot_be_computed_is_a_limit_with_its_reason(compared):
    (reason,) = compared["limits"]["matmul uint16"].values()
    assert "not implemented" in reason


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_limit_can_be_measured_on_any_cpu(dtype, tmp_path):
    """oneDNN has no products in half precision for some, torch has them for all."""
    limits = load("cpu", [dtype], SMALL, SIZES, tmp_path)
    figures = {name: limits.measure(name) for name in limits.names()}
    assert {name for name in figures if dtype in name} == {
        f"{name} {dtype}" for name in ("matmul", "qkv", "attention_out", "fc1", "fc2")
    }
    assert {"copy", "write to page cache", "write to disk"} <= set(figures)
    assert min(figures.values()) > 0
    assert not [*tmp_path.iterdir()]


class Actor:
    """What a `Worker` looks like to a comparison, whose answers are all known."""

    def __init__(self, module, threads, keep_memory):
        self.measured = Counter()

    def call(self, method, *arguments):
        value = np.ones((1, 4)) if method in ("reference", "embed") else None
        if method == "names":
            value = ["matmul float32", "qkv float32", "copy"]
        if method == "measure":
            value = 1e9 * self.measure(*arguments)
        return Answer(value, seconds=0.5, apart=0.0, cpu_seconds=0.5, peak_bytes=1)

    def measure(self, name):
        self.measured[name] += 1
        # The copy fails in the second round; in the third it is not asked for.
        if name == "matmul float32" or (name, self.measured[name]) == ("copy", 2):
            raise Failed(f"RuntimeError: no {name}")
        return self.measured[name]

    def answer(self):
        return self.call("load")

    def ask(self, *arguments, **options):
        """Do nothing."""

    def close(self):
        """Do nothing."""

    wait = ask


@pytest.fixture
def with_actors(tmp_path, monkeypatch):
    """Return a function that compares fair-esm with nothing, three times, until a deadline."""

    def compare(deadline):
        monkeypatch.setattr("benchmarks.comparison.Worker", Actor)
        comparison = Comparison(
            SMALL,
            ["MKV"],
            device="cpu",
            threads=1,
            scratch=tmp_path,
            deadline=deadline,
            save=json.dumps,
            say=print,
        )
        comparison.run([BASE], repeats=3)
        conditions = {"chip": "a chip", "threads": 1, "date": "2025-01-01", "cpu_features": []}
        conditions["versions"] = {"torch": "2"}
        return {"model": "esm2_t6_8M_UR50D", "conditions": conditions, **comparison.result}

    return compare


def test_a_limit_that_cannot_be_measured_is_a_line_with_its_reason(with_actors):
    result = with_actors(time.monotonic() + 100)
    assert result["limits"] == {
        "matmul float32": {"reason": "RuntimeError: no matmul float32"},
        "qkv float32": {"median": 2e9, "min": 1e9, "max": 3e9},
        "copy": {"median": 1e9, "min": 1e9, "max": 1e9, "reason": "RuntimeError: no copy"},
    }
    (row,) = result["rows"]
    assert row["mfu"] is None and len(row["seconds"]) == 3
    text = for_terminal(result)
    assert re.search(r"matmul float32 +RuntimeError: no matmul float32\n", text)
    assert re.search(r"qkv float32 +2.00 GFLOP/s \(1.00-3.00\)\n", text)
    assert re.search(r"copy +1.00 GB/s .* then failed: RuntimeError: no copy\n", text)
    assert f"| {BASE.name} | float32 | 10 (1.0 x) |  | 0.0 GB |" in for_readme([result])


def test_limits_for_which_there_was_no_time_say_so(with_actors):
    limits = with_actors(time.monotonic() - 1)["limits"]
    assert {tuple(limit.values()) for limit in limits.values()} == {("not run: the time was up",)}


@pytest.mark.benchmarks
def test_command_writes_json_and_prints_the_table(tmp_path):
    options = ["--models", "esm2_tiny_random", "--records", "2", "--repeats", "1", "--first", "1"]
    options += ["--device", "cpu", "--results", tmp_path, "--scratch", tmp_path]
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
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
