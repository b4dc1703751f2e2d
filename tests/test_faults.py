"""Faults of disk, memory, arithmetic and processes: recovery or one clear line, never a wrong row.

docs/faults.md lists them, each with the test that shows it.
"""

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from packedesm.embedding.output import finished
from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import RECORD_DIGEST, read_json, read_record, write_record
from packedesm.options import EmbedOptions, VerifyOptions
from packedesm.reference.vectors import REST
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from tests.jobs import Sample, first_records, flip_a_bit
from tests.number_format import NUMBER_FORMAT

pytestmark = pytest.mark.slow

BUDGET = 1024
USUAL = NUMBER_FORMAT.get("dtype", "float32")  # where a test names none


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    """The first 120 records of the example."""
    return first_records(uniprot_500, 120, tmp_path_factory.mktemp("input") / "some.fasta")


def make_sample(root: Path, fasta: Path, **config) -> Sample:
    return Sample(root, fasta, token_budget=BUDGET, **({"commit_packs": 5} | config))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, fasta):
    """What jobs that nothing disturbs compute, by their number format."""
    means = {}
    for dtype in {"float32", "bfloat16", USUAL}:
        sample = make_sample(tmp_path_factory.mktemp(dtype), fasta, dtype=dtype)
        sample.run()
        means[dtype] = np.load(sample.paths.shard_array(0, "mean"))
    return means


@pytest.fixture
def sample(tmp_path, fasta):
    return make_sample(tmp_path / "sample", fasta)


def mean(sample: Sample) -> np.ndarray:
    return np.load(sample.paths.shard_array(0, "mean"))


def test_a_finished_shard_stands_for_the_same_job_alone(sample, caplog):
    paths, weights, options = sample.paths, sample.checkpoint, EmbedOptions.of(sample.config)
    assert not finished(paths, 0, weights, options)
    sample.run()
    caplog.clear()
    assert finished(paths, 0, weights, options)
    assert not caplog.messages
    assert not finished(paths, 0, weights, replace(options, dtype="bfloat16"))
    assert not finished(paths, 0, replace(weights, sha256="0" * 64), options)
    run = ShardRun.read(paths.shard_run(0))
    replace(run, device=run.device | {"kind": "cuda"}).write(paths.shard_run(0))
    assert finished(paths, 0, weights, options)
    flip_a_bit(paths.shard_array(0, "mean"))
    assert not finished(paths, 0, weights, options)
    paths.shard_array(0, "mean").unlink()
    assert not finished(paths, 0, weights, options)
    earlier = read_record(paths.shard_run(0))
    del earlier["plan"]["kernels"], earlier[RECORD_DIGEST]
    write_record(paths.shard_run(0), earlier)
    assert not finished(paths, 0, weights, options)
    again = "shard 0 was finished and is embedded again: "
    assert len(caplog.messages) == 5 and all(said.startswith(again) for said in caplog.messages)
    assert caplog.messages[-1].endswith("run.json: is not the record of an embedding job")


def finish(sample: Sample, **config) -> None:
    """Do what comes after the embedding jobs, which had this besides in their configuration."""
    paths, config = sample.paths, sample.config | config
    merge_shards(paths, 1, ["mean"])
    sample.write_reference(REST)
    options = replace(VerifyOptions.of(config), min_cosine=0.99, max_relative_l2=0.05)
    verify(paths, options, shards=1)
    write_metrics(paths, 1)
    write_report(paths)
    write_manifest(paths, config)


# Files that are not as they were written


def test_flipped_and_truncated_commits_are_computed_again(sample, quiet):
    sample.stop_after(20)
    first, second = sample.commits()[:2]
    flip_a_bit(first)
    second.write_bytes(second.read_bytes()[:-100])
    log = sample.run()
    assert f"discarding {first}: it is damaged" in log
    assert f"discarding {second}" in log
    assert np.array_equal(mean(sample), quiet[USUAL])
    run = read_json(sample.paths.shard_run(0))
    assert (run["restarts"], run["discarded_commits"], run["recomputed_packs"]) == (1, 2, 10)


def test_a_damaged_plan_starts_over(sample, quiet):
    sample.stop_after(10)
    (sample.state / "plan.json").write_text("{")
    assert "starting over" in sample.run()
    assert np.array_equal(mean(sample), quiet[USUAL])


def test_a_changed_configuration_starts_over_and_says_so(sample, quiet):
    sample.stop_after(10)
    log = sample.run(dtype="bfloat16")
    assert "starting over" in log
    assert f"dtype was '{USUAL}', is 'bfloat16'" in log
    assert np.array_equal(mean(sample), quiet["bfloat16"])


def test_a_checkpoint_that_was_changed_before_the_job_is_refused(sample):
    path = Path(sample.checkpoint.path)
    flip_a_bit(path)
    status, line = sample.fail()
    assert status == 2
    assert f"{path}: changed since it was checked" in line


def test_a_checkpoint_that_changes_during_the_job_is_noticed(sample):
    process = sample.start(commit_seconds=0.01)
    sample.wait_for_packs(process, 1, 5)
    flip_a_bit(Path(sample.checkpoint.path), 0.9)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "changed" in errors
    assert not sample.paths.shard_array(0, "mean").exists()
    assert not sample.paths.shard_run(0).exists()


def test_a_checkpoint_that_was_only_touched_is_accepted(sample, quiet):
    os.utime(sample.checkpoint.path)
    sample.run()
    assert np.array_equal(mean(sample), quiet[USUAL])


# Disks


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a small file system; give its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no right to mount a file system: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    mount.again = remount
    yield mount
    gc.collect()  # an error that came out of an ExitStack holds its files open until then
    for path in mounted:
        subprocess.run(["umount", path], check=True)


# The vectors of every residue take 9 MB, twice while the commits are assembled.
@pytest.mark.parametrize(("size", "when"), [("4m", "committing"), ("14m", "assembling")])
def test_a_full_disk_is_one_line_and_what_was_committed_is_kept(disk, fasta, tmp_path, size, when):
    sample = make_sample(
        disk(f"size={size}") / "sample",
        fasta,
        outputs=["mean", "residue"],
        output_dtype="float32",  # of this size the disk has none in the end
        checkpoints=str(tmp_path / "checkpoints"),
    )
    status, line = sample.fail()
    assert status == 1
    assert "no space is left on the disk" in line
    assert str(sample.paths.work) in line
    assert not list(sample.paths.work.glob("embeddings/*/*"))  # nothing half-written
    committed = sample.committed()
    assert len(committed) > 5
    disk.again("size=64m")
    log = sample.run()
    assert f"kept from earlier attempts: {len(committed)} packs" in log
    config = {"outputs": ["mean", "residue"], "output_dtype": "float32"}
    undisturbed = make_sample(tmp_path / "undisturbed", fasta, **config)
    undisturbed.run()
    for output in ("mean", "residue"):
        path, expected = (s.paths.shard_array(0, output) for s in (sample, undisturbed))
        assert path.read_bytes() == expected.read_bytes()


def test_a_disk_that_is_full_while_merging_leaves_no_half_array(disk, fasta, tmp_path):
    folder = disk("size=64m")
    sample = make_sample(folder / "sample", fasta, outputs=["residue"])
    sample.run()
    used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    disk.again(f"size={used // 4096 * 4 + 4000}k")
    with pytest.raises(Fault, match=f"{sample.paths.root}: no space is left"):
        merge_shards(sample.paths, 1, ["residue"])
    assert not list(sample.paths.root.glob("*.npy"))
    assert not list(sample.paths.root.glob(".packedesm-*"))


def test_a_folder_that_cannot_be_written_to_is_named(disk, fasta, tmp_path):
    sample = make_sample(
        disk("size=64m") / "sample", fasta, checkpoints=str(tmp_path / "checkpoints")
    )
    log = sample.paths.root / "job.log"
    log.touch()
    task = tmp_path / "job.json"
    sample.start().communicate(timeout=60)
    (sample.paths.root / "job.json").rename(sample.paths.root / "kept.json")
    task.write_text((sample.paths.root / "kept.json").read_text().replace(str(log), "/dev/null"))
    disk.again("ro")
    again = subprocess.run(
        [sys.executable, "-m", "tests.embed_job", str(task)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert again.returncode == 1
    (line,) = again.stderr.strip().splitlines()
    assert f"{sample.state}: the file system is read-only" in line


# Memory and arithmetic


SMALL_MEMORY = {"token_budget": 4096, "commit_packs": 2, "faults": {"memory": 2100}}


def test_packs_that_do_not_fit_into_memory_are_planned_anew_and_successors_know(sample, quiet):
    sample.stop_after(3, **SMALL_MEMORY)
    (replan,) = read_record(sample.state / "replans.json")["replans"]
    assert replan["token_budget"] == 2048
    log = sample.run(**SMALL_MEMORY, name="successor")
    assert "out of memory" not in log
    run = read_json(sample.paths.shard_run(0))
    packs = pd.read_csv(sample.paths.shard_packs(0), sep="\t")
    assert run["replanned_packs"] == (packs["token_budget"] == 2048).sum() == len(packs) > 0
    assert run["packs"] == len(packs)
    assert run["fill"] == packs["tokens"].sum() / packs["token_budget"].sum()
    assert run["restarts"] == 1
    np.testing.assert_allclose(mean(sample), quiet[USUAL], rtol=1e-4, atol=1e-5)


def test_a_damaged_plan_of_what_is_left_costs_its_packs_alone(sample, quiet):
    sample.stop_after(3, **SMALL_MEMORY)
    flip_a_bit(sample.state / "replans.json")
    log = sample.run(**SMALL_MEMORY | {"faults": {}}, name="successor")
    assert "it belongs to packs that were planned otherwise" in log
    np.testing.assert_allclose(mean(sample), quiet[USUAL], rtol=1e-4, atol=1e-5)


def test_a_protein_that_does_not_fit_is_reported_by_name(sample):
    status, line = sample.fail(faults={"memory": 700})
    assert status == 1
    assert "tokens do not fit into memory, even alone" in line
    assert "'sp|" in line or "'tr|" in line


def test_nan_in_half_precision_is_computed_in_float32_and_told_everywhere(sample, quiet):
    lengths = np.minimum(pd.read_parquet(sample.paths.shard_index)["length"], 1022)
    log = sample.run(dtype="bfloat16", faults={"nan": int(lengths[7]) + 2})
    assert "NaN or infinity in vectors of" in log
    run = read_json(sample.paths.shard_run(0))
    rows = run["float32_rows"]
    assert rows == np.flatnonzero(lengths == lengths[7]).tolist()
    sample.config["dtype"] = "bfloat16"
    finish(sample)
    index = pd.read_parquet(sample.paths.index)
    assert index.index[index["flags"].str.contains("float32")].tolist() == rows
    exact, half = quiet["float32"], quiet["bfloat16"]
    merged = np.load(sample.paths.array("mean"))
    np.testing.assert_array_equal(merged[rows], exact[rows].astype(np.float16))
    others = np.setdiff1d(np.arange(len(merged)), rows)
    np.testing.assert_array_equal(merged[others], half[others])
    metrics = read_json(sample.paths.metrics)["recoveries"]
    assert metrics["float32_records"] == len(rows)
    told = "1 record" if len(rows) == 1 else f"{len(rows)} records"
    page = " ".join(sample.paths.report.read_text().split())
    assert f"Flag <code>float32</code></th><td>{told}: Half precision could not hold it" in page


def test_a_job_that_is_stopped_among_all_this_goes_on_to_the_same_bits(sample, tmp_path, fasta):
    """With packs planned anew and records in float32, before and after each stop."""
    lengths = np.minimum(pd.read_parquet(sample.paths.shard_index)["length"], 1022)
    nan = int(lengths.value_counts().index[0])  # that of the proteins that are cut
    config = {"dtype": "bfloat16", "faults": {"memory": 1100, "nan": nan + 2}}
    config |= {"token_budget": 2048, "commit_packs": 2}
    calm = make_sample(tmp_path / "calm", fasta)
    calm.run(**config)
    packs = pd.read_csv(calm.paths.shard_packs(0), sep="\t")
    assert packs["float32_records"].sum() == (lengths == nan).sum() > 5  # and as many packs
    slow = config | {"faults": config["faults"] | {"slow": 0.05}}
    for stop in (4, 20):
        sample.stop_after(stop, **slow)
    sample.stop_after(len(packs) - len(sample.committed()) - 4, **slow)
    sample.run(**config)
    assert np.array_equal(mean(sample), mean(calm))
    found = pd.read_csv(sample.paths.shard_packs(0), sep="\t")
    names = ["pack", "records", "residues", "tokens", "token_budget", "fill", "deferred_records"]
    pd.testing.assert_frame_equal(found[names], packs[names])
    runs = [read_json(paths.shard_run(0)) for paths in (sample.paths, calm.paths)]
    for name in ("float32_rows", "replanned_packs", "packs", "fill"):
        assert runs[0][name] == runs[1][name]
    assert runs[0]["restarts"] == 3


def test_the_report_of_a_disturbed_run_tells_of_it_and_that_of_a_quiet_one_does_not(sample):
    sample.stop_after(3, **SMALL_MEMORY)
    flip_a_bit(sample.commits()[0])
    sample.run(**SMALL_MEMORY)
    finish(sample, **SMALL_MEMORY)
    report = " ".join(sample.paths.report.read_text().split())
    told = read_json(sample.paths.metrics)["recoveries"]
    assert told["restarts"] == told["discarded_commits"] == 1
    assert (
        f"1 restart: what had been committed was kept, {told['recomputed_packs']} packs" in report
    )
    assert "1 damaged file was found" in report
    assert f"{told['replanned_packs']} packs were planned anew" in report
    sample.run(name="quiet")
    finish(sample)
    assert set(read_json(sample.paths.metrics)["recoveries"].values()) == {0}
    report = " ".join(sample.paths.report.read_text().split())
    assert "<th>Interruptions</th><td> none</td>" in report
    assert "did not fit" not in report


# Worker processes


def loader_workers(parent: int) -> list[int]:
    """Return the process ids of a job's DataLoader workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "spawn_main" in command:
            found.append(int(path.name))
    return found


# One that is dead is missed at once, one that hangs is waited for as long as patience says.
@pytest.mark.parametrize(
    ("number", "patience"),
    [(signal.SIGKILL, 300), (signal.SIGSTOP, 15)],
    ids=["SIGKILL", "SIGSTOP"],
)
def test_a_worker_that_dies_or_hangs_is_done_without(sample, quiet, number, patience):
    faults = {"patience": patience, "slow": 0.05}  # so that it is not done before it is disturbed
    process = sample.start(fork=False, workers=2, commit_packs=1, faults=faults)
    sample.wait_for_packs(process, 1, 3)
    workers = loader_workers(process.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, number)
    assert process.wait(200) == 0
    log = (sample.paths.root / "job.log").read_text()
    assert "this process reads the rest itself" in log
    assert np.array_equal(mean(sample), quiet[USUAL])
    packs = pd.read_csv(sample.paths.shard_packs(0), sep="\t")
    assert packs["pack"].tolist() == list(range(len(packs)))
    time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
