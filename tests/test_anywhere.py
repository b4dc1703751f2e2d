"""The workflow as others use it: as a module, in a bare folder, by a scheduler, from a storage."""

import os
import shutil
import sys

import numpy as np
import pytest

import packedesm
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.registry import MODELS, TINY
from packedesm.files import read_json
from packedesm.paths import Paths
from tests.workflow import ROOT, jobs_run, snakemake

pytestmark = pytest.mark.slow

PROTEINS = ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKVLAAGIV\n"
DONE = "Nothing to be done"

# Neither its configuration nor its rules are what ours are written for.
OUTER = f"""
configfile: "outer.yaml"

rule all:
    input: "vectors/in/manifest.json", "sub/results/in/.work/sharding.json"

rule proteins:
    input: "proteins.txt"
    output: temp("made/in.fasta"), temp("sub/made/in.fasta")
    shell: "for path in {{output}}; do cp {{input}} $path; done"

module packedesm:
    snakefile: "{ROOT}/Snakefile"
    config: config["vectors"]

use rule * from packedesm as esm_*

module again:
    snakefile: "{ROOT}/Snakefile"
    config: config["longer"]
    prefix: "sub"

use rule * from again as longer_*
"""
OUTER_CONFIG = """
shards: whatever
model: [another]
vectors:
  fasta: made/in.fasta
  results: vectors
  model: esm2_tiny_random
  checkpoints: checkpoints
  verify: {sequences: 0}
longer:
  fasta: made/in.fasta
  outputs: [cls]
  shards: 2
  checkpoints: checkpoints
"""


def test_two_modules_embed_what_another_rule_made(tmp_path):
    (tmp_path / "Snakefile").write_text(OUTER)
    (tmp_path / "outer.yaml").write_text(OUTER_CONFIG)
    (tmp_path / "proteins.txt").write_text(PROTEINS)
    run = snakemake(tmp_path, snakefile=tmp_path / "Snakefile")
    assert run.returncode == 0, run.stdout
    assert "Embed shard 0 of in with esm2_tiny_random" in run.stdout
    results = packedesm.open(tmp_path / "vectors" / "in")
    assert results.ids == ["a", "b"]
    assert results.manifest["config"]["model"] == "esm2_tiny_random"
    assert results.manifest["config"]["outputs"] == ["mean"]
    assert len(read_json(Paths(tmp_path / "sub" / "results" / "in").sharding)["shards"]) == 2
    assert not (tmp_path / "made" / "in.fasta").exists()
    assert DONE in snakemake(tmp_path, "--dry-run", snakefile=tmp_path / "Snakefile").stdout


def test_without_a_config_file_what_is_missing_is_said(tmp_path):
    run = snakemake(tmp_path, "--dry-run")
    assert run.returncode == 1
    assert "config key 'fasta' is missing; set it in config.yaml or with --config" in run.stdout
    run = snakemake(tmp_path, "--dry-run", "--config", "fasta=nothing.fasta")
    assert run.returncode == 1
    assert "MissingInputException" in run.stdout
    assert "nothing.fasta" in run.stdout
    assert "Traceback" not in run.stdout


# Jobs see no GPU where the run was started with two: they are to cut as many shards all the same.
SUBMIT = """#!/bin/sh
CUDA_VISIBLE_DEVICES= nohup sh "$1" > "$1.printed" 2>&1 &
echo $!
"""


def test_a_bare_folder_and_a_scheduler_of_ones_own(tmp_path, monkeypatch):
    submit = tmp_path / "submit.sh"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    folder = tmp_path / "bare"
    folder.mkdir()
    fasta = tmp_path / "in.fasta"
    fasta.write_text(PROTEINS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    options = [f"fasta={fasta}", "model=esm2_tiny_random", "checkpoints=checkpoints"]
    job = Paths("results/in").shard_run(1)
    scheduler = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit)]
    quick = ["--latency-wait", "30", "--max-status-checks-per-second", "5"]
    asked = ["--config", *options]
    run = snakemake(folder, str(job), *scheduler, "--jobs", "2", *quick, *asked)
    assert run.returncode == 0, run.stdout
    assert {"shard", "embed"} <= jobs_run(run.stdout)
    assert len(read_json(folder / Paths("results/in").sharding)["shards"]) == 2
    assert read_json(folder / job)["device"]["kind"] == "cpu"


# Does what the plugin asks of rsync, where there is none.
RSYNC = f"""#!{sys.executable}
import shutil, sys
source, target = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
shutil.copy2(source, target)
"""


@pytest.fixture
def rsync(tmp_path, monkeypatch):
    if shutil.which("rsync") is None:
        program = tmp_path / "bin" / "rsync"
        program.parent.mkdir()
        program.write_text(RSYNC)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("rsync")
def test_every_file_may_lie_in_a_storage(tmp_path):
    """The FASTA and the weights are in the bucket alone, and so are the results."""
    folder, bucket = tmp_path / "work", tmp_path / "bucket"
    for path in (folder, bucket):
        path.mkdir()
    (bucket / "in.fasta").write_text(PROTEINS)
    write_random_checkpoint(bucket / "mine.pt", MODELS[TINY], seed=1)
    storage = ["--default-storage-provider", "fs", "--default-storage-prefix", "../bucket"]
    asked = ["--config", "fasta=in.fasta", "model=mine.pt", "shards=1", "verify={'sequences': 1}"]
    run = snakemake(folder, *storage, *asked)
    assert run.returncode == 0, run.stdout
    results = packedesm.open(bucket / "results" / "in")
    assert results.ids == ["a", "b"]
    assert np.isfinite(results.array()).all()
    assert not (folder / "results").exists()
    assert DONE in snakemake(folder, "--dry-run", *storage, *asked).stdout
