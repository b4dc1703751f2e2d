"""What the rules ask while they are planned: the number of shards, and what is outdated."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from packedesm.config import resolve, with_arrays
from packedesm.errors import UserError
from packedesm.files import file_digest, write_record
from packedesm.options import ReportOptions, ShardOptions
from packedesm.paths import Paths
from packedesm.results.inputs import unchanged
from packedesm.results.planning import Planning
from tests.typed import checkpoint


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Return a function that plans in a folder of its own, as a module with a prefix if asked."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.fasta", "sub/a.fasta"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f">{name}\nMKV\n")

    def plan(prefix="", weights=(), **config) -> Planning:
        options = with_arrays(resolve({"fasta": "a.fasta", "shards": "auto", **config}), depth=6)
        samples = {"a": [Path("a.fasta")]}
        return Planning(options, samples, weights, [], lambda path: prefix + path, Path("memory"))

    return plan


def cut(paths: Paths, fasta: str, shards: int) -> None:
    """Write what the shard step records of a sample."""
    inputs = [{"sha256": file_digest(Path(fasta))}]
    options = ShardOptions.part(resolve({"fasta": fasta}))
    write_record(paths.sharding, {"inputs": inputs, **options, "shards": [{}] * shards})


@pytest.mark.parametrize("prefix", ["", "sub/"])
def test_what_auto_came_to_stands_as_long_as_the_shards_do(planned, prefix, caplog):
    planning = planned(prefix)
    assert planning.number_of_shards(3) == 3
    cut(Paths(f"{prefix}results/a"), f"{prefix}a.fasta", 2)
    assert planning.number_of_shards(3) == 2
    assert "stays 2" in caplog.text and "shards=3" in caplog.text
    assert planned(prefix, max_length=5).number_of_shards(3) == 3
    Path(f"{prefix}a.fasta").write_text(">other\nMKV\n")
    assert planning.number_of_shards(3) == 3


def test_a_number_that_is_given_counts_whatever_is_there(planned):
    cut(Paths("results/a"), "a.fasta", 2)
    assert planned(shards=5).number_of_shards(5) == 5
    assert planned(shards=5).remembered_shards() == 5
    planned(shards=5).remember_shards(5)
    assert not Path("memory").exists()


def test_a_job_is_told_what_auto_came_to_for_its_results(planned):
    planned().remember_shards(3)
    planned(results="others").remember_shards(1)
    planned("sub/").remember_shards(2)
    assert planned().remembered_shards() == 3
    assert planned(results="others").remembered_shards() == 1
    assert planned("sub/").remembered_shards() == 2


def test_a_job_that_was_not_told_says_so(planned):
    planned(results="others").remember_shards(1)
    with pytest.raises(UserError, match=r"packedesm-shards\.json cannot be read here; give a numb"):
        planned().remembered_shards()


@pytest.mark.parametrize("prefix", ["", "sub/"])
def test_steps_are_outdated_by_what_lies_where_the_module_puts_it(planned, prefix):
    planning, paths = planned(prefix), Paths(f"{prefix}results/a")
    assert planning.outdated_steps("a", 2) == []
    cut(paths, f"{prefix}a.fasta", 2)
    assert planning.outdated_steps("a", 2) == []
    assert planning.outdated_steps("a", 3) == [paths.sharding]
    Path(f"{prefix}a.fasta").write_text(">other\nMKV\n")
    assert planning.outdated_steps("a", 2) == [paths.sharding]
    Path(f"{prefix}a.fasta").unlink()  # made by a rule, and removed after its use
    assert planning.outdated_steps("a", 2) == []


@pytest.mark.parametrize("prefix", ["", "sub/"])
def test_a_report_is_outdated_by_another_table_of_whatever_age(planned, prefix):
    planning = planned(prefix, report={"annotations": "table.tsv"})
    paths, table = Paths(f"{prefix}results/a"), Path(f"{prefix}table.tsv")
    cut(paths, f"{prefix}a.fasta", 2)
    table.write_text("id\tx\na\tone\n")
    options = ReportOptions.part(planning.options)
    write_record(paths.reporting, {"options": options, "table": file_digest(table)})
    assert planning.outdated_steps("a", 2) == []
    table.write_text("id\tx\na\ttwo\n")
    os.utime(table, (1, 1))
    assert planning.outdated_steps("a", 2) == [paths.reporting]
    table.unlink()  # made by a rule, and removed after its use
    assert planning.outdated_steps("a", 2) == []


@pytest.mark.parametrize("prefix", ["", "sub/"])
def test_what_is_gone_of_finished_results_is_seen_without_the_work(planned, prefix):
    planning, paths = planned(prefix), Paths(f"{prefix}results/a")
    paths.root.mkdir(parents=True)
    for path in (*paths.results(), *paths.arrays(["mean"])):
        path.touch()
    assert planning.outdated_steps("a", 2) == []
    paths.array("mean").unlink()
    assert planning.outdated_steps("a", 2) == [paths.array("mean")]


def test_a_module_may_put_another_folder_in_the_place_of_the_results(planned):
    replaced = replace(planned(), place=lambda path: path.replace("results/", "sub/", 1))
    assert replaced.sample("a").root == Path("sub/a")
    record = Paths("sub").checkpoint
    checkpoint().write(record)
    assert replaced.outdated_checkpoint() == [record]


@pytest.mark.parametrize("change", ["written to", "replaced", "removed"])
def test_an_input_that_changes_while_it_is_read_is_told(tmp_path, change):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.touch()
    with unchanged(*paths):
        paths[0].read_bytes()
    told = pytest.raises(UserError, match="/b: changed while it was read; run again")
    with told, unchanged(*paths):
        if change == "written to":
            paths[1].write_text("more")
        elif change == "replaced":
            paths[0].with_name("c").touch()
            paths[0].with_name("c").rename(paths[1])
        else:
            paths[1].unlink()


@pytest.mark.parametrize("prefix", ["", "sub/"])
def test_a_checkpoint_is_outdated_by_other_weights(planned, prefix):
    record = Paths(f"{prefix}results").checkpoint
    checkpoint().write(record)
    planning = planned(prefix, ["a.fasta"], model=checkpoint().model)
    assert planning.outdated_checkpoint() == [record]
    assert planned(prefix, ["gone.pt"], model=checkpoint().model).outdated_checkpoint() == []
    assert planned(prefix, model="another").outdated_checkpoint() == [record]


def test_a_folder_that_is_not_ours_is_refused(planned):
    Path("sub/results/a").mkdir(parents=True)
    Path("sub/results/a/thesis.txt").touch()
    planned().refuse_foreign()
    with pytest.raises(UserError, match="did not make"):
        planned("sub/").refuse_foreign()


@pytest.mark.parametrize("results", ["out", "out/more", "out/exports", "."])
def test_nor_may_samples_lie_in_a_folder_of_results(planned, results):
    write_record(Paths("." if results == "." else "out").request, {})
    with pytest.raises(UserError, match=r"lies in a folder of results.*set `results`"):
        planned(results=results).refuse_foreign()


def test_beside_results_they_may(planned):
    write_record(Paths("out").request, {})
    planned(results="results").refuse_foreign()
