import numpy as np
import pandas as pd
import pytest

from packedesm.embedding.output import shard_writer
from packedesm.embedding.pack import FinishedPack
from packedesm.errors import Damaged, Fault
from packedesm.files import file_digest, read_record, write_record
from packedesm.packing.dataset import SequenceDataset
from packedesm.paths import Paths
from packedesm.results.merge import merge_shards
from packedesm.sequences.shards import write_shards
from tests.jobs import flip_a_bit
from tests.typed import checkpoint, embed_plan, policy, shard_options, shard_run

POLICY = policy()


WIDTH = 3


def fake_vectors(sequence: bytes) -> np.ndarray:
    """Give vectors that only this sequence has, a row per residue."""
    codes = np.frombuffer(sequence, np.uint8)
    columns = [codes, np.arange(len(codes)), np.full(len(codes), len(codes))]
    return np.stack(columns, axis=1).astype(np.float32)


def finished_pack(dataset: SequenceDataset, items: list[int], vectors: dict) -> FinishedPack:
    residues = dataset.embedded_lengths[items]
    return FinishedPack(None, np.array(items), residues, vectors, np.empty(0, np.int64))


def record_run(paths: Paths, shard: int, outputs: list[str], **run) -> None:
    """Write what the job of a shard records about its input and its arrays."""
    record = {
        "shard": shard,
        "plan": embed_plan(arrays=tuple(outputs)),
        "fasta_sha256": file_digest(paths.shard_fasta(shard)),
        "arrays_sha256": {name: file_digest(paths.shard_array(shard, name)) for name in outputs},
    }
    shard_run(**record | run).write(paths.shard_run(shard))


def write_shard(paths: Paths, shard: int, outputs: list[str], packs=None, dtype="float32"):
    dataset = SequenceDataset(paths.shard_fasta(shard), POLICY)
    # The last record first: packs come in the plan's order, not in input order.
    packs = packs if packs is not None else [[item] for item in range(len(dataset))][::-1]
    plan = embed_plan(arrays=tuple(outputs), output_dtype=dtype)
    with shard_writer(paths, shard, dataset.embedded_lengths, plan, width=WIDTH) as writer:
        for pack in packs:
            proteins = dataset.__getitems__(pack)
            residues = [fake_vectors(protein.sequence) for protein in proteins]
            vectors = {"residue": np.concatenate(residues)}
            vectors["mean"] = np.stack([r.mean(axis=0) for r in residues])
            chosen = {output: vectors[output] for output in outputs}
            writer.write(finished_pack(dataset, pack, chosen))
    record_run(paths, shard, outputs)


@pytest.fixture
def sample(tmp_path):
    def make(sequences: list[str], shards: int, deduplicate: bool = True) -> Paths:
        fasta = tmp_path / "in.fasta"
        fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(sequences)))
        paths = Paths(tmp_path / "sample")
        write_shards(
            [fasta], paths, shard_options(deduplicate=deduplicate), shards=shards, width=64
        )
        return paths

    return make


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_merged_rows_are_the_input_records_in_order(sample, shards, deduplicate):
    sequences = ["MKV", "ACDEF", "MKV", "GGG", "ACDEF", "W", "MKV"]
    paths = sample(sequences, shards, deduplicate)
    for shard in range(shards):
        write_shard(paths, shard, ["mean", "residue"])
    merge_shards(paths, shards, ["mean", "residue"])
    mean, residue = np.load(paths.array("mean")), np.load(paths.array("residue"))
    offsets = np.load(paths.residue_offsets)
    assert offsets.tolist() == np.cumsum([0, *map(len, sequences)]).tolist()
    for row, sequence in enumerate(sequences):
        expected = fake_vectors(sequence.encode())
        np.testing.assert_array_equal(residue[offsets[row] : offsets[row + 1]], expected)
        assert np.array_equal(mean[row], expected.mean(axis=0))


def test_arrays_have_the_asked_dtype(sample):
    paths = sample(["MKV"], 1)
    write_shard(paths, 0, ["mean"], dtype="float16")
    merge_shards(paths, 1, ["mean"])
    assert np.load(paths.array("mean")).dtype == np.float16


def test_new_arrays_stand_beside_nothing_of_an_earlier_run(sample):
    paths = sample(["MKV", "ACD"], 1)
    old = [paths.manifest, paths.array("cls"), paths.array("residue"), paths.residue_offsets]
    for path in old:
        path.write_text("of an earlier run")
    write_shard(paths, 0, ["mean"])
    merge_shards(paths, 1, ["mean"])
    assert not any(path.exists() for path in old)
    assert paths.array("mean").exists()


def test_a_merge_that_fails_leaves_the_earlier_results(sample):
    paths = sample(["MKV", "ACD"], 1)
    write_shard(paths, 0, ["mean"])
    paths.manifest.write_text("of an earlier run")
    flip_a_bit(paths.shard_array(0, "mean"), 0.9)
    with pytest.raises(Damaged):
        merge_shards(paths, 1, ["mean"])
    assert paths.manifest.exists()


def test_an_index_that_was_damaged_before_its_digest_was_made_is_one_line(sample):
    paths = sample(["MKV", "ACD"], 1)
    write_shard(paths, 0, ["mean"])
    paths.shard_index.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    summary = read_record(paths.sharding)
    summary["sha256"][paths.shard_index.name] = file_digest(paths.shard_index)
    write_record(paths.sharding, summary)
    with pytest.raises(Damaged, match=f"^{paths.shard_index}: is not as it was written"):
        merge_shards(paths, 1, ["mean"])
    assert not paths.index.exists()


def test_a_missing_record_publishes_nothing(sample):
    paths = sample(["MKV", "ACD"], 1)
    with pytest.raises(RuntimeError, match="no vector for 1 record, first"):
        write_shard(paths, 0, ["mean"], packs=[[1]])
    assert list(paths.shard_array(0, "mean").parent.iterdir()) == []


def test_a_record_that_comes_twice_is_refused(sample):
    paths = sample(["MKV", "ACD"], 1)
    with pytest.raises(RuntimeError, match="embedded twice"):
        write_shard(paths, 0, ["mean"], packs=[[0, 1], [1]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("output", ["mean", "residue"])
def test_a_value_that_is_not_finite_is_refused_by_record(sample, value, output):
    paths = sample(["MKV", "ACD"], 1)
    dataset = SequenceDataset(paths.shard_fasta(0), POLICY)
    bad = np.zeros((2 if output == "mean" else 6, WIDTH))
    bad[-1, 0] = value
    with (
        pytest.raises(RuntimeError, match=r"vectors of the shard's records \[1\]"),
        shard_writer(
            paths, 0, dataset.lengths, embed_plan(arrays=(output,)), width=WIDTH
        ) as writer,
    ):
        writer.write(finished_pack(dataset, [0, 1], {output: bad}))
    assert list(paths.shard_array(0, output).parent.iterdir()) == []


def test_a_shard_of_another_size_than_the_index_is_refused(sample):
    paths = sample(["MKV", "ACD", "WWW"], 2)
    for shard in range(2):
        write_shard(paths, shard, ["mean"])
    np.save(paths.shard_array(1, "mean"), np.zeros((7, WIDTH), np.float32))
    record_run(paths, 1, ["mean"])
    with pytest.raises(RuntimeError, match="rows of mean"):
        merge_shards(paths, 2, ["mean"])
    assert not paths.array("mean").exists()


def test_a_merge_larger_than_one_chunk_keeps_the_order(sample, monkeypatch):
    monkeypatch.setattr("packedesm.results.merge._BYTES_AT_ONCE", 2 * 4 * WIDTH)
    sequences = ["A" * n for n in range(1, 12)]
    paths = sample([*sequences, "AA", "A" * 11], 3)
    for shard in range(3):
        write_shard(paths, shard, ["mean"])
    merge_shards(paths, 3, ["mean"])
    assert np.load(paths.array("mean"))[:, 2].tolist() == [*range(1, 12), 2, 11]
    digests = read_record(paths.merging)["sha256"]
    written = (paths.array("mean"), paths.index, paths.skipped)
    assert digests == {path.name: file_digest(path) for path in written}


@pytest.mark.parametrize("output", ["mean", "residue"])
def test_every_byte_of_a_shards_array_is_checked(sample, output):
    paths = sample(["MKV", "ACD", "WWW"], 2)
    for shard in range(2):
        write_shard(paths, shard, [output])
    path = paths.shard_array(1, output)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(Damaged, match=str(path)):
            merge_shards(paths, 2, [output])
    for cut in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(Damaged, match=str(path)):
            merge_shards(paths, 2, [output])
    path.write_bytes(content + b"0")
    with pytest.raises(Damaged, match=str(path)):
        merge_shards(paths, 2, [output])
    assert [*paths.root.iterdir()] == [paths.work]


def test_a_run_of_another_input_is_refused_by_name(sample):
    paths = sample(["MKV", "ACD", "WWW"], 2)
    for shard in range(2):
        write_shard(paths, shard, ["mean"])
    record_run(paths, 1, ["mean"], fasta_sha256="0" * 64)
    with pytest.raises(Fault, match=f"{paths.shard_run(1)}: is of another input"):
        merge_shards(paths, 2, ["mean"])
    assert [*paths.root.iterdir()] == [paths.work]


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "float16"},
        {"float_products": ("fc2",)},
        {"output_dtype": "float16"},
        {"checkpoint": checkpoint(sha256="1" * 64)},
    ],
)
def test_shards_that_were_not_computed_alike_are_not_merged(sample, other):
    paths = sample(["MKV", "ACD", "WWW"], 2)
    for shard in range(2):
        write_shard(paths, shard, ["mean"])
    record_run(paths, 1, ["mean"], **other)
    with pytest.raises(Fault, match=str(paths.shard_run(1))):
        merge_shards(paths, 2, ["mean"])


def test_records_that_took_float32_are_flagged_with_their_duplicates(sample):
    paths = sample(["MKV", "acd", "WWW", "ACD"], 2)
    for shard in range(2):
        write_shard(paths, shard, ["mean"])
    merge_shards(paths, 2, ["mean"])
    assert paths.index.read_bytes() == paths.shard_index.read_bytes()
    record_run(paths, 0, ["mean"], float32_rows=(1,))
    merge_shards(paths, 2, ["mean"])
    index = pd.read_parquet(paths.index)
    assert index["flags"].tolist() == ["", "upper_cased,float32", "", "float32"]
    before = pd.read_parquet(paths.shard_index)
    pd.testing.assert_frame_equal(index.drop(columns="flags"), before.drop(columns="flags"))
