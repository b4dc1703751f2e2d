"""The whole workflow, as a user runs it."""

import gzip
import os
import shutil
from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pytest

import packedesm
from packedesm.cli import main
from packedesm.files import read_json
from packedesm.paths import Paths
from packedesm.sequences.fasta import read_records
from tests.commands import Command
from tests.jobs import first_records
from tests.workflow import ROOT, jobs_run, snakemake, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500):
    return first_records(uniprot_500, 150, tmp_path_factory.mktemp("input") / "proteins.fasta")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, fasta):
    """The proteins embedded with 1 and 2 shards; what comes after the merge, for 2 alone."""
    folders = {}
    for shards in (1, 2):
        folder = tmp_path_factory.mktemp(f"shards{shards}")
        write_config(folder, fasta=str(fasta), shards=shards, verify={"sequences": 4})
        targets = [] if shards == 2 else ["results/proteins/index.parquet"]
        run = snakemake(folder, *targets)
        assert run.returncode == 0, run.stdout
        folders[shards] = folder
    return folders


def sample(folder):
    return Paths(folder / "results" / "proteins")


@pytest.fixture(scope="module")
def five_shards(tmp_path_factory, fasta, runs):
    """The same by the command, with 5 shards."""
    out = tmp_path_factory.mktemp("five") / "out"
    options = {"shards": 5, "max-length": 1022, "token-budget": "auto"}
    run = Command(fasta, out, runs[1] / "checkpoints", **options)
    assert main(run.arguments) == 0
    return run.out


@pytest.mark.parametrize("shards", [2, 5])
def test_the_number_of_shards_changes_no_row(runs, five_shards, shards):
    one, many = sample(runs[1]), five_shards if shards == 5 else sample(runs[shards])
    pd.testing.assert_frame_equal(pd.read_parquet(one.index), pd.read_parquet(many.index))
    a, b = np.load(one.array("mean")), np.load(many.array("mean"))
    difference = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert difference.max() <= 1e-5


def test_rows_are_in_input_order(runs, five_shards, fasta):
    ids = [record.id for record in read_records(fasta)]
    assert packedesm.open(sample(runs[2]).root).ids == ids
    assert pd.read_parquet(five_shards.index)["id"].tolist() == ids


def test_a_second_run_does_nothing(runs):
    assert "Nothing to be done" in snakemake(runs[2]).stdout


AFTER_SHARDS = {"reference", "embed", "merge", "metrics", "verify", "report", "manifest"}


@pytest.mark.parametrize(
    ("changed", "rules"),
    [
        ("verify={'sequences':5}", {"reference", "metrics", "verify", "report", "manifest"}),
        (
            "max_length=500",
            {"shard", "reference", "embed", "merge", "metrics", "verify", "report", "manifest"},
        ),
        ("dtype=bfloat16", {"embed", "merge", "metrics", "verify", "report", "manifest"}),
        ("seed=7 output_dtype=float16", AFTER_SHARDS),
        ("layers=[0]", AFTER_SHARDS),
        ("workers=1", set()),
    ],
)
@pytest.mark.parametrize("memory", ["kept", "lost"])
def test_a_changed_parameter_runs_exactly_what_depends_on_it(runs, changed, rules, memory):
    with without_memory(runs[2]) if memory == "lost" else nullcontext():
        run = snakemake(runs[2], "--dry-run", "--config", *changed.split(" "))
        assert jobs_run(run.stdout) == rules


@contextmanager
def without_memory(folder):
    """Let Snakemake know nothing of what was run, as where another project shares the results."""
    memory, away = folder / ".snakemake", folder / "away"
    memory.rename(away)
    try:
        yield
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        away.rename(memory)


def test_an_input_that_was_replaced_by_an_older_one_runs_again(runs, fasta):
    before, times = fasta.read_bytes(), fasta.stat()
    try:
        fasta.write_bytes(before.replace(b"A", b"G", 1))
        os.utime(fasta, ns=(1, 1))
        assert "shard" in jobs_run(snakemake(runs[2], "--dry-run").stdout)
        with without_memory(runs[2]):
            assert "shard" in jobs_run(snakemake(runs[2], "--dry-run").stdout)
    finally:
        fasta.write_bytes(before)
        os.utime(fasta, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "Nothing to be done" in snakemake(runs[2], "--dry-run").stdout


def test_a_dry_run_tells_what_another_number_of_shards_would_run(runs):
    run = snakemake(runs[2], "--dry-run", "--config", "shards=5")
    assert run.returncode == 0, run.stdout
    assert {"shard", "embed", "merge"} <= jobs_run(run.stdout)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_other_gpus_make_no_shard_anew_where_their_number_was_chosen(runs, monkeypatch, device):
    """A GPU is lost, or one looks at finished results where there is none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    now = {"cpu": 1, "auto": 3}[device]
    again = ["--dry-run", "--config", "shards=auto", f"device={device}"]
    run = snakemake(runs[2], *again)
    assert "Nothing to be done" in run.stdout
    assert "shards: auto stays 2" in run.stdout and f"say shards={now}" in run.stdout
    assert "shard" in jobs_run(snakemake(runs[2], *again, "max_length=500").stdout)


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json"])
def test_foreign_files_in_the_folder_of_results_are_refused_and_stay(tmp_path, fasta, name):
    write_config(tmp_path, fasta=str(fasta))
    path = sample(tmp_path).root / name
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    run = snakemake(tmp_path)
    assert run.returncode != 0
    assert f"holds what this workflow did not make ('{name}')" in run.stdout
    assert [entry.name for entry in path.parent.iterdir()] == [name]


@pytest.fixture(scope="module")
def two_samples(tmp_path_factory, uniprot_500):
    """The folder of a run of two samples with every output, one of two files, one of the second."""
    folder = tmp_path_factory.mktemp("two_samples")
    records = gzip.decompress(uniprot_500.read_bytes()).decode().split("\n>")
    first, second = folder / "first.fa", folder / "second.fasta.gz"
    first.write_text("\n>".join(records[:20]) + "\n")
    text = "\n>".join([REPEATING, *records[20:30]]) + "\n"
    second.write_bytes(gzip.compress(text.encode()))
    write_config(
        folder,
        fasta={"both": [str(first), str(second)], "second": str(second)},
        shards=2,
        outputs=["mean", "cls", "max", "residue"],
        long_sequences="window",
        max_length=200,
        window_overlap=50,
        dtype="bfloat16",
        verify={"sequences": 6},
    )
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder


# Row 2 repeats the sequence of row 0; row 3 repeats id and sequence of row 1; row 4 that of 0.
REPEATING = ">a\nMKVLAC\n>b\nACDEF\n>c\nmkvlac\n>b again\nACDEF\n>d\nMKVLAC\n>e\nWW"


def test_two_samples_several_files_and_every_output(two_samples):
    both = packedesm.open(two_samples / "results" / "both")
    alone = packedesm.open(two_samples / "results" / "second")
    assert len(both) == 36
    assert both.ids[20:] == alone.ids
    for output in ("mean", "cls", "max"):
        assert both.array(output).dtype == np.float16
        a, b = (x.astype(float) for x in (both.array(output)[20:], alone.array(output)))
        assert (np.linalg.norm(a - b, axis=1) <= 0.02 * np.linalg.norm(b, axis=1)).all()
    assert both.residues(0).shape == (both.index["length"][0], 64)


def test_repeated_sequences_are_embedded_once_and_counted(two_samples):
    paths = Paths(two_samples / "results" / "second")
    results = packedesm.open(paths.root)
    repeating = range(6)  # the ten records after these are all different
    assert [results.ids[row] for row in repeating] == ["a", "b", "c", "b", "d", "e"]
    duplicate_of = results.index["duplicate_of"].fillna(-1).tolist()
    assert duplicate_of == [-1, -1, 0, 1, 0, -1] + [-1] * 10
    vectors = results.array()
    for row, first in ((2, 0), (3, 1), (4, 0)):
        np.testing.assert_array_equal(vectors[row], vectors[first])
    assert len(np.unique(vectors[repeating], axis=0)) == 3
    embedded = [read_json(paths.shard_run(shard))["records"] for shard in (0, 1)]
    assert sum(embedded) == 13
    assert read_json(paths.metrics)["duplicates"] == {"records": 3, "residues": 17}
    warning = "1 of 16 records repeats the id and sequence of an earlier one"
    page = paths.report.read_text()
    assert warning in page
    assert "3\n(17 residues): computed once, the vector copied" in page
    log = (two_samples / "results" / ".logs" / "second" / "shard.log").read_text()
    assert f"WARNING {warning}" in log
    assert "16 records, 13 to embed" in log


def test_a_missed_threshold_fails_the_run_and_keeps_the_evidence(runs):
    # Float32 is as exact as the reference, so that only an absurd threshold is missed.
    run = snakemake(runs[1], "--config", "verify={'sequences': 4, 'max_relative_l2': 1.0e-12}")
    assert run.returncode != 0
    assert jobs_run(run.stdout) == {"reference", "metrics", "verify", "report", "manifest"}
    assert "verification failed: 4 of 4 comparisons" in run.stdout
    assert read_json(sample(runs[1]).verification)["passed"] is False
    assert sample(runs[1]).report.exists()
    assert not sample(runs[1]).manifest.exists()


@pytest.mark.parametrize("inside", [True, False])
def test_the_slurm_profile_plans_from_a_checkout_and_by_its_path(tmp_path, fasta, inside):
    start_in, profile = (ROOT, "slurm") if inside else (tmp_path, f"{ROOT}/profiles/slurm")
    asked = ["--dry-run", "--config", f"fasta={fasta}", "shards=2"]
    run = snakemake(tmp_path, "--profile", profile, *asked, start_in=start_in)
    assert run.returncode == 0, run.stdout
    assert "embed" in jobs_run(run.stdout)


def test_the_snakemake_report_holds_the_samples_report(runs, tmp_path):
    target = tmp_path / "report.zip"
    run = snakemake(runs[2], "--report", str(target))
    assert run.returncode == 0, run.stdout
    assert target.stat().st_size > 100_000
