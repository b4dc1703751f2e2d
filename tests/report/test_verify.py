import gzip
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from packedesm.embedding.record import ShardRun
from packedesm.errors import Damaged, Fault
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import Checkpoint
from packedesm.files import RECORD_DIGEST, file_digest, read_record, write_record
from packedesm.options import ReferenceOptions, VerifyOptions
from packedesm.paths import Paths
from packedesm.reference.comparison import USUAL_COSINE, Distance, Limits, compare
from packedesm.reference.model import DoesNotFitError, Reference
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import PARTS
from packedesm.report.verify import verify
from tests import typed
from tests.report.finished_run import write_run, written_anew

torch.set_num_threads(1)

OUTPUTS = ["mean", "cls", "max", "residue"]
WIDTH, LIMIT = 16, 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    write_random_checkpoint(path, Geometry(layers=1, width=WIDTH, heads=2), seed=3)
    return path


@pytest.fixture(scope="module")
def fasta(uniprot_500) -> str:
    """A dozen short real proteins, and the third of them once more."""
    records = gzip.decompress(uniprot_500.read_bytes()).decode()[1:].split("\n>")
    proteins = [record.partition("\n") for record in records]
    short = [(header, rest.replace("\n", "")) for header, _, rest in proteins if len(rest) < 400]
    short = sorted(short[:80], key=lambda record: len(record[1]))[::7]
    short.insert(5, ("repeat of another", short[2][1]))
    return "".join(f">{header}\n{sequence}\n" for header, sequence in short)


@pytest.fixture(scope="module")
def truth(tmp_path_factory, checkpoint, fasta) -> Paths:
    """A finished run of two shards whose vectors are the reference's own."""
    paths = write_run(
        tmp_path_factory.mktemp("truth") / "sample",
        fasta,
        2,
        run={"checkpoint": recorded(checkpoint), "arrays": tuple(OUTPUTS)},
        max_length=LIMIT,
    )
    reference = Reference(checkpoint)
    sequences = [record.split("\n")[1] for record in fasta[1:].split(">")]
    store(paths, [reference.representation(sequence[:LIMIT]) for sequence in sequences])
    recorded(checkpoint).write(paths.checkpoint)
    return paths


def store(paths: Paths, tokens: list[np.ndarray]) -> None:
    """Write the four arrays of records whose token vectors are given."""
    np.save(paths.array("mean"), np.stack([t[1:-1].mean(0) for t in tokens]))
    np.save(paths.array("max"), np.stack([t[1:-1].max(0) for t in tokens]))
    np.save(paths.array("cls"), np.stack([t[0] for t in tokens]))
    np.save(paths.array("residue"), np.concatenate([t[1:-1] for t in tokens]))
    np.save(paths.residue_offsets, np.cumsum([0, *(len(t) - 2 for t in tokens)]))
    # Without digests: these tests damage arrays to see what the comparison says.
    write_record(paths.merging, {"sha256": {}, "made_from": []})


@pytest.fixture
def paths(truth, tmp_path) -> Paths:
    """A copy of the finished run, to be damaged."""
    return Paths(shutil.copytree(truth.root, tmp_path / "sample"))


def recorded(path) -> Checkpoint:
    geometry = Geometry(layers=1, width=WIDTH, heads=2)
    return typed.checkpoint(path=str(path), geometry=geometry, sha256=file_digest(path))


def run(paths: Paths, sequences: int | str = 100, shards: int = 2, **changes) -> dict:
    config = {"verify": {"sequences": sequences, **changes}, "outputs": OUTPUTS}
    length = ShardRun.read(paths.shard_run(0)).options.length
    reference = replace(typed.options(ReferenceOptions, **config), length=length)
    for part in PARTS:
        write_reference(paths, Checkpoint.read(paths.checkpoint), reference, part, shards=shards)
    return verify(paths, typed.options(VerifyOptions, **config), shards=shards)


def edit(paths: Paths, output: str, change) -> None:
    array = np.load(paths.array(output))
    np.save(paths.array(output), change(array.copy()))


def told(paths: Paths) -> dict:
    record = read_record(paths.verification)
    del record[RECORD_DIGEST]
    return record


def missed(result: dict) -> set[tuple[int, str]]:
    return {
        (record["row"], record["output"]) for record in result["records"] if not record["passed"]
    }


def test_true_vectors_pass_in_every_output(paths):
    result = run(paths)
    index = pq.read_table(paths.shard_index).to_pylist()
    assert result["passed"] is True
    assert result["sequences"] == len(index)
    assert len(result["records"]) == len(index) * len(OUTPUTS)
    assert result["worst"]["relative_l2"] < 1e-6
    assert result["max_relative_l2"] == 1e-5
    assert {record["row"]: record["id"] for record in result["records"]} == {
        row["row"]: row["id"] for row in index
    }
    assert any(
        record["embedded_length"] == LIMIT < record["length"] for record in result["records"]
    )
    # The third protein stands there twice, and counts once.
    assert [(of["array"], of["proteins"]) for of in result["certificate"]] == [
        (name, len(index) - 1) for name in ("mean", "cls", "max")
    ]
    assert all(of["centred"]["relative_l2"]["worst"] < 1e-5 for of in result["certificate"])
    assert result == told(paths)


def test_a_changed_row_is_caught_and_named(paths):
    def nudge(array):
        array[4] *= 1.001
        return array

    edit(paths, "mean", nudge)
    result = run(paths)
    assert result["passed"] is False
    assert missed(result) == {(4, "mean")}
    assert (result["worst"]["row"], result["worst"]["output"]) == (4, "mean")
    assert result["worst"]["relative_l2"] == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize("output", ["mean", "cls", "max"])
def test_swapped_rows_are_caught(paths, output):
    def swap(array):
        array[[1, 8]] = array[[8, 1]]
        return array

    edit(paths, output, swap)
    assert missed(run(paths)) == {(1, output), (8, output)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_is_caught(paths, value):
    def spoil(array):
        array[3, 7] = value
        return array

    edit(paths, "max", spoil)
    result = run(paths)
    assert result["passed"] is False
    assert missed(result) == {(3, "max")}
    assert result["worst"]["relative_l2"] is None
    assert told(paths)["worst"]["row"] == 3


def test_residue_offsets_off_by_one_are_caught(paths):
    offsets = np.load(paths.residue_offsets)
    np.save(paths.residue_offsets, np.concatenate(([0], offsets[1:-1] + 1, offsets[-1:])))
    result = run(paths)
    rows = len(offsets) - 1
    assert missed(result) == {(row, "residue") for row in range(rows)}


def test_a_single_wrong_residue_is_caught_under_a_loose_distance(paths):
    place = np.load(paths.residue_offsets)[9] + 2

    def tilt(array):
        # By a tenth of its length at a right angle: its cosine falls to 0.995.
        vector = array[place]
        aside = np.ones(WIDTH) - vector * vector.sum() / (vector @ vector)
        array[place] += 0.1 * aside * np.linalg.norm(vector) / np.linalg.norm(aside)
        return array

    edit(paths, "residue", tilt)
    result = run(paths, max_relative_l2=10.0)
    assert missed(result) == {(9, "residue")}
    assert result["worst"]["cosine"] == pytest.approx(1 / np.sqrt(1.01), abs=1e-5)


def test_a_repeated_sequence_must_hold_the_vector_of_the_first(paths):
    repeats = [
        row["row"]
        for row in pq.read_table(paths.shard_index).to_pylist()
        if row["duplicate_of"] is not None
    ]
    assert len(repeats) == 1

    def forget(array):
        array[repeats[0]] = 0
        return array

    edit(paths, "mean", forget)
    assert missed(run(paths)) == {(repeats[0], "mean")}


def test_a_shard_whose_offsets_are_wrong_is_caught(paths):
    path = paths.shard_fai(1)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    lines[0][2] = str(int(lines[0][2]) + 1)
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    with pytest.raises(Damaged, match=str(path)):
        run(paths)
    written_anew(paths, path)
    with pytest.raises(Damaged, match=str(paths.shard_fasta(1))):
        run(paths)


def test_true_vectors_of_another_sequence_are_caught(tmp_path, checkpoint):
    # Both the job and the verification read the shard: their agreement alone proves nothing.
    paths = write_run(tmp_path / "sample", ">a\nMKVLAAGIV\n", 1, run={"arrays": tuple(OUTPUTS)})
    recorded(checkpoint).write(paths.checkpoint)
    paths.shard_fasta(0).write_text(">0\nMKVLAAGIW\n")
    store(paths, [Reference(checkpoint).representation("MKVLAAGIW")])
    with pytest.raises(Damaged, match=str(paths.shard_fasta(0))):
        run(paths, shards=1)


def test_rows_are_found_in_every_row_group_of_the_index(paths):
    table = pq.read_table(paths.shard_index)
    pq.write_table(table, paths.shard_index, row_group_size=4)
    written_anew(paths, paths.shard_index)
    result = run(paths)
    assert result["passed"] is True
    assert [record["row"] for record in result["records"][:: len(OUTPUTS)]] == [*range(len(table))]


def test_windows_are_averaged_per_residue(paths, checkpoint, fasta, tmp_path):
    reference = Reference(checkpoint)
    sequence = next(s for s in fasta.split("\n") if len(s) == max(map(len, fasta.split("\n"))))[
        :100
    ]
    windowed = write_run(
        tmp_path / "windowed",
        f">a\n{sequence}\n",
        1,
        run={"checkpoint": recorded(checkpoint), "arrays": tuple(OUTPUTS)},
        max_length=60,
        window_overlap=20,
        long_sequences="window",
    )
    recorded(checkpoint).write(windowed.checkpoint)
    first, second = (reference.representation(part) for part in (sequence[:60], sequence[40:]))
    shared = (first[41:61] + second[1:21]) / 2
    cls = (first[0] + second[0]) / 2
    tokens = np.concatenate([[cls], first[1:41], shared, second[21:61], [cls]])
    store(windowed, [tokens])
    assert run(windowed, shards=1)["passed"] is True
    store(windowed, [np.concatenate([[cls], first[1:61], second[21:61], [cls]])])
    assert missed(run(windowed, shards=1)) >= {(0, "mean"), (0, "residue")}


def test_the_limit_follows_the_coarser_number_format(paths):
    for dtype, output_dtype, limit in (
        ("float32", "float16", 0.005),
        ("float16", "float16", 0.005),
        ("bfloat16", "float16", 0.02),
        ("bfloat16", "float32", 0.02),
    ):
        run_1 = ShardRun.read(paths.shard_run(1))
        plan = replace(run_1.plan, dtype=dtype, output_dtype=output_dtype)
        replace(run_1, plan=plan).write(paths.shard_run(1))
        assert run(paths, 1)["max_relative_l2"] == limit
    assert run(paths, 1, max_relative_l2=0.3)["max_relative_l2"] == 0.3


def test_no_sequences_means_no_verdict(paths):
    result = run(paths, 0)
    assert result["passed"] is None
    assert (result["sequences"], result["records"], result["certificate"]) == (0, [], [])
    assert told(paths) == result


def test_the_sample_is_as_large_as_asked_and_seeded(paths):
    result = run(paths, 5)
    rows = [record["row"] for record in result["records"]]
    assert result["sequences"] == 5
    assert len(rows) == 5 * len(OUTPUTS)
    assert [record["row"] for record in run(paths, 5)["records"]] == rows


def test_how_many_records_are_verified_and_why_is_told(paths, caplog):
    caplog.set_level("INFO")
    records = pq.ParquetFile(paths.shard_index).metadata.num_rows
    result = run(paths, "auto")
    assert result["sequences"] == result["drawn"]["sequences"] == 4
    assert (result["drawn"]["records"], result["drawn"]["asked"]) == (records, 16)
    assert result["drawn"]["share"] > result["drawn"]["most_share"] == 0.1
    words = f"4 of {records} proteins; asked for 16, limited to 10% of the run's operations"
    assert f"to be verified: {words} and at least 4" in caplog.messages
    assert run(paths, 5)["drawn"]["most_share"] is None
    assert run(paths, 0)["drawn"] is None


def test_vectors_of_zeros_or_another_width_miss():
    expected = np.ones(4)
    assert compare(np.zeros(4), expected, Limits(0.99, 2.0)) == Distance(
        0.0, 1.0, passed=False, absolute=1.0
    )
    assert not compare(np.ones(5), expected, Limits(0.0, 9.0)).passed


def test_what_is_usual_is_the_default():
    assert typed.options(VerifyOptions).min_cosine == USUAL_COSINE


def test_a_vector_exactly_at_the_limit_passes():
    found, expected = np.array([1.0, 0.5]), np.array([1.0, 0.0])
    limits = compare(found, expected, Limits(0.0, 1.0))
    assert limits.relative_l2 == 0.5
    assert compare(found, expected, Limits(limits.cosine, 0.5)).passed
    assert not compare(found, expected, Limits(limits.cosine, 0.49)).passed


def test_a_record_that_does_not_fit_is_replaced_by_the_longest_that_does(paths, monkeypatch):
    lengths = pq.read_table(paths.shard_index)["length"].to_pylist()
    limit = sorted(lengths)[-4]
    whole = Reference.says

    def bounded(self, sequence, layers, **asked):
        if len(sequence) > limit:
            raise DoesNotFitError
        return whole(self, sequence, layers, **asked)

    monkeypatch.setattr(Reference, "says", bounded)
    monkeypatch.setattr("packedesm.options.LengthPolicy.windows", lambda _self, n: [(0, n)])
    monkeypatch.setattr("packedesm.options.LengthPolicy.embedded", lambda _self, n: np.asarray(n))
    result = run(paths, 1, max_relative_l2=1000, min_cosine=0)
    assert result["sequences"] == 1
    (row,) = {record["row"] for record in result["records"]}
    assert lengths[row] == max(n for n in lengths if n <= result["replaced"][-1]["length"] * 7 // 8)
    assert result["replaced"][0]["length"] == max(lengths)
    assert result["replaced"][-1]["by"] == row
    paths.verification.unlink()
    for path in (paths.work / "reference").iterdir():
        path.unlink()  # or it would be taken as it is
    limit = 0
    with pytest.raises(Fault, match=r"nothing can be verified; the vectors are kept"):
        run(paths, 1)
    assert not paths.verification.exists()
