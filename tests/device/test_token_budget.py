"""Token budgets: where larger packs stop being faster."""

import json
from pathlib import Path

import pytest
import torch

from packedesm.device import token_budget as tuning
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from tests.device.made_up_gpu import DEFAULT, MadeUpGpu, empty_model


def shard(tokens=1 << 20, sequences=None, length=350) -> tuning.Workload:
    """A shard of proteins of about this length."""

    def packs(budget):
        return [[length] * (budget // length)]

    return tuning.Workload(tokens, sequences or tokens // length, packs)


SHARD = shard()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, Geometry(layers=1, width=32, heads=2), seed=1)
    return PackedESM2.from_fair_esm(*reversed(load_state(path)))


@pytest.fixture
def forwards(model, monkeypatch, tmp_path):
    """Forget what was measured before, and list the lengths of every forward pass."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = []
    forward = model.forward_packed

    def counted(input_ids, *arguments, **options):
        seen.append(options["lengths"])
        return forward(input_ids, *arguments, **options)

    monkeypatch.setattr(model, "forward_packed", counted)
    return seen


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({10: 1.0, 20: 2.0, 40: 2.03, 80: 9.0}, 20),
        ({10: 1.0, 20: 2.0, 40: 3.0}, 40),
        ({10: 5.0, 20: 4.0}, 10),
    ],
)
def test_larger_packs_are_tried_until_they_are_no_faster(rates, best):
    assert tuning.rising_until(rates.__getitem__, rates) == best


def test_memory_ends_the_search_but_not_at_the_first():
    def rate(budget):
        if budget > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return budget

    limit = 25
    assert tuning.rising_until(rate, [10, 20, 40]) == 20
    limit = 5
    with pytest.raises(torch.OutOfMemoryError):
        tuning.rising_until(rate, [10, 20, 40])


def test_another_fault_is_not_taken_for_want_of_memory():
    def rate(budget):
        if budget > 10:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return budget

    with pytest.raises(RuntimeError, match="illegal"):
        tuning.rising_until(rate, [10, 20])


def test_it_is_measured_once_and_remembered(model, forwards):
    budget = tuning.fastest_budget(model, "sdpa", 8192, SHARD)
    assert budget in (4096, 8192)
    assert {sum(lengths) for lengths in forwards} == {11 * 350, 23 * 350}
    measured = len(forwards)
    assert tuning.fastest_budget(model, "sdpa", 8192, SHARD) == budget
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096
    assert len(forwards) == measured


def test_more_memory_is_a_reason_to_measure_again(model, forwards):
    assert tuning.fastest_budget(model, "sdpa", 1500, SHARD) == 1500
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096
    assert {sum(lengths) for lengths in forwards} == {4 * 350, 11 * 350}


def test_memory_beyond_the_largest_budget_is_no_reason_to_measure_again(
    model, forwards, monkeypatch
):
    monkeypatch.setattr(tuning, "_LARGEST", 8192)
    monkeypatch.setattr(tuning, "_WORTH", 1e9)  # so the search ends at the first budget
    assert tuning.fastest_budget(model, "sdpa", 10_000, SHARD) == 4096
    measured = len(forwards)
    assert tuning.fastest_budget(model, "sdpa", 10_000, SHARD) == 4096
    assert len(forwards) == measured


def test_another_dtype_is_measured_for_itself(model, forwards):
    tuning.fastest_budget(model, "sdpa", 4096, SHARD)
    measured = len(forwards)
    tuning.fastest_budget(model.bfloat16(), "sdpa", 4096, SHARD)
    assert len(forwards) == 2 * measured


@pytest.mark.parametrize("content", ["", "[]", '{"cpu": '])
def test_damaged_notes_are_measured_again(model, forwards, tmp_path, content):
    path = tmp_path / "cache" / "packedesm" / "token-budgets.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096
    assert forwards


@pytest.mark.parametrize(
    "entry",
    [
        '"x"',
        "{}",
        '{"tried": 4096}',
        '{"budget": "x", "tried": 4096}',
        '{"budget": 0, "tried": 4096}',
        '{"budget": -5, "tried": 4096}',
        '{"budget": true, "tried": 4096}',
        '{"budget": 0.5, "tried": 4096}',
        '{"budget": 2, "tried": 4096}',
        '{"budget": NaN, "tried": 4096}',
        '{"budget": 4096, "tried": null}',
    ],
)
def test_a_damaged_entry_is_measured_again_and_others_stay(model, forwards, tmp_path, entry):
    path = tmp_path / "cache" / "packedesm" / "token-budgets.json"
    tuning.fastest_budget(model, "sdpa", 4096, SHARD)
    (key,) = (content := json.loads(path.read_text()))
    other = {"budget": 8192, "tried": 8192}
    path.write_text(f'{{{json.dumps(key)}: {entry}, "other": {json.dumps(other)}}}')
    forwards.clear()
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096
    assert forwards
    assert json.loads(path.read_text()) == content | {"other": other}


def test_what_another_job_measures_meanwhile_is_kept(model, forwards, tmp_path):
    path = tmp_path / "cache" / "packedesm" / "token-budgets.json"
    other = {"other": {"budget": 8192, "tried": 8192}}

    def packs(budget):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(other))
        return [[budget]]

    tuning.fastest_budget(model, "sdpa", 4096, tuning.Workload(1 << 20, 1 << 12, packs))
    assert len(found := json.loads(path.read_text())) == 2
    assert found.items() >= other.items()


def test_without_a_home_nothing_is_remembered(model, forwards, monkeypatch):
    """As for a user whom the container does not know."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096


def test_a_cache_that_cannot_be_written_is_no_obstacle(model, forwards, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert tuning.fastest_budget(model, "sdpa", 4096, SHARD) == 4096


def test_the_packs_are_those_of_the_shard(model, forwards):
    packs = {4096: [[1000, 1000, 999], [30, 4]], 8192: [[1000] * 8, [999, 30, 4]]}
    work = tuning.Workload(10_000, 14, packs.__getitem__)
    tuning.fastest_budget(model, "sdpa", 8192, work)
    tried = [*packs[4096], *packs[8192]]
    assert forwards == [lengths for lengths in tried for _ in range(1 + 2)]


def test_a_budget_above_the_shard_is_not_tried(model, forwards):
    assert tuning.fastest_budget(model, "sdpa", 1 << 20, shard(tokens=5000)) == 4096
    assert {sum(lengths) for lengths in forwards} == {11 * 350}
    measured = len(forwards)
    # Nor by another shard of that size; but by one that would fill larger packs.
    tuning.fastest_budget(model, "sdpa", 1 << 20, shard(tokens=8000))
    assert len(forwards) == measured
    tuning.fastest_budget(model, "sdpa", 8192, shard(tokens=50_000))
    assert {sum(lengths) for lengths in forwards} == {11 * 350, 23 * 350}


def test_a_shard_without_proteins_is_not_measured(model, forwards):
    assert tuning.fastest_budget(model, "sdpa", 8192, shard(tokens=0, sequences=0)) == 4096
    assert not forwards


def test_jobs_of_a_run_agree_and_much_longer_proteins_are_measured_anew(model, forwards):
    tuning.fastest_budget(model, "sdpa", 4096, shard(length=340))
    measured = len(forwards)
    tuning.fastest_budget(model, "sdpa", 4096, shard(length=370))
    assert len(forwards) == measured
    tuning.fastest_budget(model, "sdpa", 4096, shard(length=900))
    assert len(forwards) == 2 * measured


def test_no_memory_stays_with_the_stream_that_was_measured_on(fake_cuda, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with MadeUpGpu(monkeypatch) as gpu:
        assert tuning.fastest_budget(empty_model(device=fake_cuda), "sdpa", 8192, SHARD) == 8192
    assert gpu.streams == {"another"}
    assert gpu.emptied == [{DEFAULT}]  # where the weights are


def test_where_no_pack_keeps_to_a_budget_nothing_is_measured(model, forwards):
    work = tuning.Workload(100_000, 2, lambda _budget: [])
    assert tuning.fastest_budget(model, "sdpa", 8192, work) == 8192
    assert not forwards
