"""A bit that flips in a file, between the step that writes it and one that reads it, is noticed.

docs/faults.md has the table of the files. Each line of it is tried twice: the reader names the
file and publishes nothing; and if it does not check this one file, this very test fails.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import packedesm
from packedesm import files
from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault, UserError
from packedesm.esm2.registry import Checkpoint
from packedesm.options import ReferenceOptions, VerifyOptions
from packedesm.paths import Paths
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import FIRST, REST
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from packedesm.sequences.faidx import read_faidx
from tests.jobs import Sample, first_records, flip_a_bit
from tests.typed import options

pytestmark = pytest.mark.slow

OUTPUTS = ["mean", "residue"]
PLACES = (0.03, 0.5, 0.97)
SAID = ("is not as it was written", "changed since it was checked")
RECORDS = 20
VERIFY = VerifyOptions(sequences=RECORDS, min_cosine=0.99, max_relative_l2=0.05, seed=1)
REFERENCE = {"verify": {"sequences": RECORDS}, "outputs": OUTPUTS, "max_length": 60}


def _reference(paths: Paths, part: str) -> None:
    checkpoint, asked = Checkpoint.read(paths.checkpoint), options(ReferenceOptions, **REFERENCE)
    write_reference(paths, checkpoint, asked, part, shards=1)


class Step(NamedTuple):
    """A step that reads what others wrote."""

    run: Callable[[Paths], object]
    writes: Callable[[Paths], list[Path]]


STEPS = {
    "merge": Step(
        lambda paths: merge_shards(paths, 1, OUTPUTS),
        lambda paths: [
            *paths.arrays(OUTPUTS),
            *(paths.index, paths.skipped, paths.merging, paths.merging_seconds),
        ],
    ),
    "first": Step(lambda p: _reference(p, FIRST), lambda p: p.reference_files(FIRST)),
    "rest": Step(lambda p: _reference(p, REST), lambda p: p.reference_files(REST)),
    "verify": Step(
        lambda paths: verify(paths, VERIFY, shards=1), lambda paths: [paths.verification]
    ),
    "metrics": Step(lambda paths: write_metrics(paths, 1), lambda paths: [paths.metrics]),
    "report": Step(write_report, lambda paths: [paths.report, *paths.multiqc(), paths.reporting]),
    "manifest": Step(lambda paths: write_manifest(paths, {}), lambda paths: [paths.manifest]),
    "open": Step(lambda paths: packedesm.open(paths.root), lambda _paths: []),
}
# Which steps read a file, by the name that `file_of` knows.
READERS = {
    "sharding": ["first", "rest", "merge", "verify", "metrics"],
    "shard_index": ["first", "rest", "merge", "metrics"],
    "sharding_seconds": ["report"],
    "shard_skipped": ["merge"],
    "shard_fai": ["first", "rest", "metrics"],
    "shard_fasta": ["rest"],  # the first part reads four records, each with its digest
    "facts first": ["rest", "verify", "metrics"],
    "numbers first": ["rest", "verify"],
    "facts rest": ["verify"],
    "numbers rest": ["verify"],
    "shard_run": ["merge", "verify", "metrics", "manifest"],
    "shard_packs": ["metrics"],
    "shard mean": ["merge"],
    "shard residue": ["merge"],
    "checkpoint": ["first", "rest"],
    "weights": ["first", "rest"],
    "merging": ["verify", "report", "manifest"],
    "merging_seconds": ["report"],
    "mean": ["report", "manifest"],
    "residue": ["manifest"],
    "residue_offsets": ["manifest"],
    "index": ["report", "manifest"],
    "skipped": ["manifest"],
    "verification": ["report", "manifest"],
    "metrics": ["report", "manifest"],
    "packing": ["manifest"],
    "throughput": ["manifest"],
    "report": ["manifest"],
    **{f"multiqc {n}": ["manifest"] for n in range(4)},
    "reporting": ["manifest"],
    "manifest": ["open"],
}
PAIRS = [(name, reader) for name, readers in READERS.items() for reader in readers]
READ_BY_JOBS = (
    *("sharding", "shard_fasta", "shard_fai", "shard_digests", "checkpoint", "weights"),
    *("facts first", "numbers first"),
)


def file_of(paths: Paths, name: str) -> Path:
    if name == "weights":
        return Path(Checkpoint.read(paths.checkpoint).path)
    kind, _, part = name.partition(" ")
    if kind in ("facts", "numbers"):
        return paths.reference(part) if kind == "facts" else paths.reference_numbers(part)
    if kind == "shard":
        return paths.shard_array(0, part)
    if name in OUTPUTS:
        return paths.array(name)
    if kind == "multiqc":
        return paths.multiqc()[int(part)]
    path = getattr(paths, name)
    return path if isinstance(path, Path) else path(0)


def make_sample(root: Path, fasta: Path) -> Sample:
    return Sample(root, fasta, token_budget=64, commit_packs=1, **REFERENCE)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    return first_records(uniprot_500, RECORDS, tmp_path_factory.mktemp("input") / "some.fasta")


@pytest.fixture(scope="module")
def complete(tmp_path_factory, fasta) -> Paths:
    """A sample that was finished to the end."""
    sample = make_sample(tmp_path_factory.mktemp("complete") / "sample", fasta)
    sample.run()
    for step in STEPS.values():
        step.run(sample.paths)
    return sample.paths


@pytest.fixture
def paths(complete, tmp_path) -> Paths:
    """A copy of it, its weights included, to be damaged."""
    copy = Paths(shutil.copytree(complete.root, tmp_path / "sample"))
    checkpoint = Checkpoint.read(copy.checkpoint)
    moved = copy.root / "checkpoints" / Path(checkpoint.path).name
    Checkpoint.from_json(checkpoint.as_json() | {"path": str(moved)}).write(copy.checkpoint)
    return copy


def names(error: BaseException, path: Path) -> bool:
    """Tell whether an error is the one line that names the damaged file."""
    said = tuple(f"{path}: {words}" for words in SAID)
    return isinstance(error, (Fault, UserError)) and str(error).startswith(said)


def try_step(step: Step, paths: Paths) -> BaseException | None:
    """Run a step anew, and return how it failed; what it writes appears only if it did not."""
    for path in step.writes(paths):
        path.unlink()
    try:
        step.run(paths)
    except Exception as error:
        assert not [path for path in step.writes(paths) if path.exists()]
        return error
    return None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "reader"), PAIRS)
def test_a_flipped_bit_is_noticed_by_name(paths, name, reader, place):
    path = file_of(paths, name)
    flip_a_bit(path, place)
    assert names(try_step(STEPS[reader], paths), path)


@pytest.mark.parametrize(("name", "reader"), PAIRS)
def test_without_the_check_of_a_file_its_flipped_bit_is_not_noticed(
    paths, name, reader, monkeypatch
):
    path, same = file_of(paths, name), files._same
    monkeypatch.setattr(files, "_same", lambda of, *pair: of == path or same(of, *pair))
    flip_a_bit(path, 0.5)
    assert not names(try_step(STEPS[reader], paths), path)


@pytest.fixture
def sample(tmp_path, fasta) -> Sample:
    return make_sample(tmp_path / "sample", fasta)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("attempt", ["fresh", "resumed"])
@pytest.mark.parametrize("name", READ_BY_JOBS)
def test_a_job_notices_a_flipped_bit_by_name(sample, name, attempt, checked):
    path = file_of(sample.paths, name)
    if attempt == "resumed":
        sample.stop_after(1)  # of 20: each record is a pack
    # Of the FASTA a job that was resumed reads only what is left to do: a bit of each sequence.
    size = path.stat().st_size
    starts = read_faidx(sample.paths.shard_fai(0)).offsets if name == "shard_fasta" else [size // 2]
    for start in starts:
        flip_a_bit(path, (start + 0.5) / size)
    process = sample.start(faults={} if checked else {"unchecked": str(path)})
    _, errors = process.communicate(timeout=120)
    assert any(f"packedesm: {path}: {words}" in errors for words in SAID) == checked
    if checked:
        assert process.returncode in (1, 2)
        assert not sample.paths.shard_run(0).exists()


def test_every_file_of_a_run_is_in_the_table(complete):
    known = {file_of(complete, name) for name in (*READERS, *READ_BY_JOBS)}
    found = {path for path in complete.root.rglob("*") if path.is_file()}
    others = {path.name for path in found - known if path.parent != complete.choices}
    # Of this test's own job; nobody reads them.
    assert others == {"job.json", "job.log"}


def test_a_run_of_an_earlier_attempt_is_not_taken_for_the_last(paths):
    """Each record is whole, but they do not belong together."""
    for name in ("shard_run", "merging", "metrics", "verification"):
        copy = Paths(shutil.copytree(paths.root, paths.root.with_name(name)))
        path = file_of(copy, name)
        if name == "shard_run":
            run = ShardRun.read(path)
            ShardRun(**vars(run) | {"host": "another"}).write(path)
        else:
            files.write_record(path, files.read_record(path) | {"seconds": 1.5})
        error = try_step(STEPS["manifest"], copy)
        assert "was made from other files than are there" in str(error), name
