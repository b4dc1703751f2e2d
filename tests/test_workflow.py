"""The whole workflow, as a user runs it, on the shipped example."""

import gzip

import numpy as np
import pandas as pd
import pytest

import packedesm
from packedesm.files import read_json
from packedesm.paths import Paths
from packedesm.sequences.fasta import read_records
from tests.workflow import ROOT, jobs_run, snakemake, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory, uniprot_500):
    """The example embedded with 1, 2 and 5 shards."""
    folders = {}
    for shards in (1, 2, 5):
        folder = tmp_path_factory.mktemp(f"shards{shards}")
        write_config(folder, fasta=str(uniprot_500), shards=shards, verify={"sequences": 4})
        run = snakemake(folder)
        assert run.returncode == 0, run.stdout
        folders[shards] = folder
    return folders


def sample(folder):
    return Paths(folder / "results" / "uniprot_500")


@pytest.mark.parametrize("shards", [2, 5])
def test_the_number_of_shards_changes_no_row(runs, shards):
    one, many = sample(runs[1]), sample(runs[shards])
    pd.testing.assert_frame_equal(pd.read_parquet(one.index), pd.read_parquet(many.index))
    a, b = np.load(one.vectors("mean")), np.load(many.vectors("mean"))
    difference = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert difference.max() <= 1e-5


def test_rows_are_in_input_order(runs, uniprot_500):
    results = packedesm.open(sample(runs[5]).root)
    assert results.ids == [record.id for record in read_records(uniprot_500)]


def test_a_second_run_does_nothing(runs):
    assert "Nothing to be done" in snakemake(runs[2]).stdout


@pytest.mark.parametrize(
    ("changed", "rules"),
    [
        ("verify={'sequences': 5}", {"verify", "report", "manifest"}),
        ("max_length=500", {"shard", "embed", "merge", "metrics", "verify", "report", "manifest"}),
        ("dtype=bfloat16", {"embed", "merge", "metrics", "verify", "report", "manifest"}),
        ("workers=1", set()),
    ],
)
def test_a_changed_parameter_runs_exactly_what_depends_on_it(runs, changed, rules):
    assert jobs_run(snakemake(runs[2], "--dry-run", "--config", changed).stdout) == rules


def test_two_samples_several_files_and_every_output(tmp_path, uniprot_500):
    lines = gzip.decompress(uniprot_500.read_bytes()).decode().split("\n>")
    first, second = tmp_path / "first.fa", tmp_path / "second.fasta.gz"
    first.write_text("\n>".join(lines[:20]) + "\n")
    second.write_bytes(gzip.compress((">" + "\n>".join(lines[20:30]) + "\n").encode()))
    write_config(
        tmp_path,
        fasta={"both": [str(first), str(second)], "second": str(second)},
        shards=2,
        outputs=["mean", "cls", "max", "residue"],
        long_sequences="window",
        max_length=200,
        window_overlap=50,
        dtype="bfloat16",
        verify={"sequences": 6},
    )
    run = snakemake(tmp_path)
    assert run.returncode == 0, run.stdout
    both = packedesm.open(tmp_path / "results" / "both")
    alone = packedesm.open(tmp_path / "results" / "second")
    assert len(both) == 30
    assert both.ids[20:] == alone.ids
    for output in ("mean", "cls", "max"):
        assert both.array(output).dtype == np.float16
        a, b = (x.astype(float) for x in (both.array(output)[20:], alone.array(output)))
        assert (np.linalg.norm(a - b, axis=1) <= 0.02 * np.linalg.norm(b, axis=1)).all()
    assert both.residues(0).shape == (both.index["length"][0], 64)


def test_repeated_sequences_are_embedded_once_and_counted(tmp_path):
    fasta = tmp_path / "in.fasta"
    # Row 2 repeats the sequence of row 0; row 3 repeats id and sequence of row 1; row 4 that of 0.
    fasta.write_text(">a\nMKVLAC\n>b\nACDEF\n>c\nmkvlac\n>b again\nACDEF\n>d\nMKVLAC\n>e\nWW\n")
    write_config(tmp_path, fasta=str(fasta), shards=2)
    run = snakemake(tmp_path)
    assert run.returncode == 0, run.stdout
    paths = Paths(tmp_path / "results" / "in")
    results = packedesm.open(paths.root)
    assert results.ids == ["a", "b", "c", "b", "d", "e"]
    assert results.index["duplicate_of"].fillna(-1).tolist() == [-1, -1, 0, 1, 0, -1]
    vectors = results.array()
    for row, first in ((2, 0), (3, 1), (4, 0)):
        np.testing.assert_array_equal(vectors[row], vectors[first])
    assert len(np.unique(vectors, axis=0)) == 3
    embedded = [read_json(paths.shard_run(shard))["records"] for shard in (0, 1)]
    assert sum(embedded) == 3
    assert read_json(paths.metrics)["duplicates"] == {"records": 3, "residues": 17}
    warning = "1 of 6 records repeats the id and sequence of an earlier one"
    page = paths.report.read_text()
    assert warning in page
    assert "3\n(17 residues): computed once, the vector copied" in page
    log = (tmp_path / "results" / ".logs" / "in" / "shard.log").read_text()
    assert f"WARNING {warning}" in log
    assert "6 records, 3 to embed, in 2 shards" in log


def test_a_missed_threshold_fails_the_run_and_keeps_the_evidence(tmp_path, uniprot_500):
    write_config(
        tmp_path,
        fasta=str(uniprot_500),
        dtype="bfloat16",
        verify={"sequences": 4, "max_relative_l2": 1e-6},
    )
    run = snakemake(tmp_path)
    assert run.returncode != 0
    assert "verification failed: 4 of 4 comparisons" in run.stdout
    assert read_json(sample(tmp_path).verification)["passed"] is False
    assert sample(tmp_path).report.exists()
    assert not sample(tmp_path).manifest.exists()


def test_the_slurm_profile_plans_from_a_checkout(tmp_path):
    run = snakemake(ROOT, "--profile", "slurm", "--dry-run", "--config", f"results={tmp_path}")
    assert run.returncode == 0, run.stdout
    assert "embed" in jobs_run(run.stdout)


def test_the_snakemake_report_holds_the_samples_report(runs, tmp_path):
    target = tmp_path / "report.zip"
    run = snakemake(runs[1], "--report", str(target))
    assert run.returncode == 0, run.stdout
    assert target.stat().st_size > 100_000
