import gzip
import hashlib
import os
import threading
from unittest.mock import ANY

import numpy as np
import pyarrow.parquet
import pyfaidx
import pytest

from packedesm.errors import UserError
from packedesm.files import RECORD_DIGEST, file_digest
from packedesm.paths import Paths
from packedesm.sequences.fasta import BLOCK_SIZE
from packedesm.sequences.shards import write_shards
from packedesm.sequences.summary import read_summary
from tests.typed import policy, shard_options


def cut_into(paths, fastas, shards=1, width=320, **config):
    return write_shards(fastas, paths, shard_options(**config), shards=shards, width=width)


@pytest.fixture
def write(tmp_path):
    """Write files named a.fasta, b.fasta, … and shard them."""

    def write(*contents, shards=1, **options):
        files = []
        for name, content in zip("abcdefgh", contents, strict=False):
            path = tmp_path / f"{name}.fasta"
            path.write_bytes(content)
            files.append(path)
        paths = Paths(tmp_path / "out")
        return paths, cut_into(paths, files, shards, **options)

    return write


def plain_records(path):
    """Well-formed gzip FASTA, line by line: [(id, sequence)]."""
    records = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if line.startswith(">"):
            records.append([line[1:].split(" ")[0], ""])
        else:
            records[-1][1] += line
    return records


def index_of(paths):
    return pyarrow.parquet.read_table(paths.shard_index).to_pydict()


def shard_records(paths, shards):
    """[(row, sequence)] of each shard, read by pyfaidx with the index that lies beside it."""
    result = []
    for shard in range(shards):
        path = paths.shard_fasta(shard)
        fasta = pyfaidx.Fasta(
            str(path), indexname=str(paths.shard_fai(shard)), build_index=False, rebuild=False
        )
        result.append([(int(name), str(fasta[name])) for name in fasta.keys()])  # noqa: SIM118
        fasta.close()
    return result


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shards", [1, 2, 5, 600])
def test_shards_join_to_the_unique_records_in_input_order(tmp_path, uniprot_500, shards):
    paths = Paths(tmp_path)
    summary = cut_into(paths, [uniprot_500], shards)
    records = plain_records(uniprot_500)
    seen, expected = {}, []
    for row, (_, sequence) in enumerate(records):
        if seen.setdefault(sequence, row) == row:
            expected.append((row, sequence))

    found = shard_records(paths, shards)
    assert [record for shard in found for record in shard] == expected
    assert [part["records"] for part in summary["shards"]] == [len(shard) for shard in found]
    for shard in range(shards):
        text = paths.shard_fasta(shard).read_text()
        assert text == "".join(f">{row}\n{sequence}\n" for row, sequence in found[shard])

    index = index_of(paths)
    assert index["row"] == list(range(500))
    assert index["id"] == [name for name, _ in records]
    assert index["length"] == [len(sequence) for _, sequence in records]
    assert index["embedded_length"] == [min(len(sequence), 1022) for _, sequence in records]
    assert index["sha256"] == [hashlib.sha256(s.encode()).hexdigest() for _, s in records]
    duplicate_of = [seen[s] if seen[s] != row else None for row, (_, s) in enumerate(records)]
    assert index["duplicate_of"] == duplicate_of
    long = [len(sequence) > 1022 for _, sequence in records]
    assert index["flags"] == ["truncated" if flag else "" for flag in long]
    assert summary["flags"] == {"truncated": sum(long)}


def test_the_index_does_not_depend_on_the_number_of_shards(tmp_path, uniprot_500):
    tables = []
    for shards in (1, 2, 5):
        paths = Paths(tmp_path / str(shards))
        cut_into(paths, [uniprot_500], shards)
        tables.append(paths.shard_index.read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_the_index_has_the_types_that_readers_rely_on(write):
    paths, _ = write(b">a x\nMK\n>b\nMK\n")
    schema = pyarrow.parquet.read_schema(paths.shard_index)
    assert {field.name: str(field.type) for field in schema} == {
        "row": "int64",
        "id": "string",
        "description": "string",
        "file": "int32",
        "record": "int64",
        "length": "int32",
        "embedded_length": "int32",
        "sha256": "string",
        "duplicate_of": "int64",
        "flags": "string",
    }


def test_an_index_of_several_row_groups_is_whole_and_in_order(write, monkeypatch):
    monkeypatch.setattr("packedesm.sequences.shards._ROW_GROUP", 900)
    sequence = b"ACDEFGHIKLMNPQRSTVWY" * 100
    last = [b"W" * (i % 1000 + 1) for i in range(1500)]
    paths, _ = write(b"".join(b">p%d\n%s%s\n" % (i, sequence, w) for i, w in enumerate(last)))
    assert pyarrow.parquet.ParquetFile(paths.shard_index).num_row_groups == 2
    index = index_of(paths)
    assert index["row"] == list(range(1500))
    assert index["id"] == [f"p{i}" for i in range(1500)]
    assert index["duplicate_of"] == [None] * 1000 + list(range(500))


def test_shards_of_real_proteins_cost_nearly_the_same(tmp_path, uniprot_20k):
    summary = cut_into(Paths(tmp_path), [uniprot_20k], 16)
    costs = np.array([part["cost"] for part in summary["shards"]])
    assert costs.max() / costs.mean() < 1.001
    assert sum(part["residues"] for part in summary["shards"]) == summary["unique_residues"]
    assert sum(part["records"] for part in summary["shards"]) == summary["unique"]
    assert summary["records"] == 20_000


def test_more_shards_than_records_leave_empty_shards_that_are_valid(write):
    paths, summary = write(b">a\nMK\n>b\nACD\n", shards=5)
    found = shard_records(paths, 5)
    assert [record for shard in found for record in shard] == [(0, "MK"), (1, "ACD")]
    assert sorted(len(shard) for shard in found) == [0, 0, 0, 1, 1]
    empty = next(part for part in summary["shards"] if not part["records"])
    assert empty["cost"] == 0.0
    assert not any(empty.values())


def test_several_files_are_one_input_in_their_order(write, tmp_path):
    paths, summary = write(b">a\nMK\n>b\nACD", b">c\nWW\n", shards=1)
    assert shard_records(paths, 1) == [[(0, "MK"), (1, "ACD"), (2, "WW")]]
    a, b = tmp_path / "a.fasta", tmp_path / "b.fasta"
    assert summary["inputs"] == [
        {"path": str(a), "bytes": 12, "records": 2, "sha256": file_digest(a)},
        {"path": str(b), "bytes": 6, "records": 1, "sha256": file_digest(b)},
    ]


def test_the_summary_counts_what_is_there(write):
    paths, summary = write(
        b">a\nMKVLAC\n>b\nmkvlac*\n>c\nAJ*D\n>e\nWWWW\n", shards=2, max_length=5, width=1
    )
    assert summary["records"] == 4
    assert summary["unique"] == 3
    assert summary["residues"] == 6 + 6 + 4 + 4
    assert summary["embedded_residues"] == 5 + 5 + 4 + 4
    assert summary["unique_residues"] == 5 + 4 + 4
    assert summary["flags"] == {
        "j_replaced": 1,
        "stop_removed": 1,
        "stop_replaced": 1,
        "truncated": 2,
        "upper_cased": 1,
    }
    assert [part["tokens"] for part in summary["shards"]] == [7, 12]
    assert [part["cost"] for part in summary["shards"]] == pytest.approx(
        [7 + 49 / 6, 2 * (6 + 36 / 6)]
    )
    assert index_of(paths)["flags"] == [
        "truncated",
        "upper_cased,stop_removed,truncated",
        "stop_replaced,j_replaced",
        "",
    ]
    assert (summary["max_length"], summary["long_sequences"]) == (5, "truncate")
    assert summary["window_overlap"] == 256
    assert read_summary(paths) == {**summary, RECORD_DIGEST: ANY}
    for words in ("cut there", "stop", "J "):
        assert any(words in warning for warning in summary["warnings"])
    assert not any("\n" in warning for warning in summary["warnings"])


def test_nothing_to_warn_about_gives_no_warning(write):
    assert write(b">a\nMKVLAC\n>b\nMKVLAC\n")[1]["warnings"] == []


def test_identical_sequences_are_embedded_once_and_point_to_the_first(write):
    fasta = b">a\nMK\n>b\nAC\n>c\nMK\n>d\nmk\n>e\nAC\n>f\nMKA\n"
    paths, summary = write(fasta)
    assert shard_records(paths, 1) == [[(0, "MK"), (1, "AC"), (5, "MKA")]]
    assert index_of(paths)["duplicate_of"] == [None, None, 0, 0, 1, None]
    assert summary["unique"] == 3

    paths, summary = write(fasta, deduplicate=False)
    assert [row for row, _ in shard_records(paths, 1)[0]] == [0, 1, 2, 3, 4, 5]
    assert index_of(paths)["duplicate_of"] == [None] * 6
    assert summary["unique"] == 6


def test_sequences_that_differ_only_beyond_the_limit_are_no_duplicates(write):
    paths, _ = write(b">a\nMKVLA\n>b\nMKVLC\n", max_length=4)
    assert index_of(paths)["duplicate_of"] == [None, None]


def test_windows_are_counted_with_the_tokens_of_all_their_windows(write):
    paths, summary = write(
        b">a\n" + b"A" * 25 + b"\n>b\nMK\n",
        long_sequences="window",
        max_length=10,
        window_overlap=4,
        width=1,
    )
    expected = policy(max_length=10, long_sequences="window", window_overlap=4).tokens(
        np.array([25, 2])
    )
    assert expected.tolist() == [48, 4]  # four windows of 10 residues, <cls> and <eos>
    assert summary["shards"][0]["tokens"] == 52
    assert summary["shards"][0]["cost"] == pytest.approx(4 * (12 + 144 / 6) + 4 + 16 / 6)
    assert summary["embedded_residues"] == 27
    assert index_of(paths)["embedded_length"] == [25, 2]
    assert index_of(paths)["flags"] == ["windowed", ""]


def test_full_embeds_long_records_whole_and_flags_nothing(write):
    paths, summary = write(b">a\nMKVLAC\n", long_sequences="full", max_length=4)
    assert index_of(paths)["embedded_length"] == [6]
    assert summary["flags"] == {}
    assert summary["shards"][0]["tokens"] == 8


def test_empty_records_can_be_skipped_and_get_no_row(write):
    paths, summary = write(
        b">a\n>b\nMK\n>c\n\n>d\n*\n>e\nAC\n", b">f\n>g\n", b">h\nWW\n", empty_sequences="skip"
    )
    assert index_of(paths)["id"] == ["b", "e", "h"]
    assert index_of(paths)["row"] == [0, 1, 2]
    assert summary["skipped_empty"] == 5
    assert [source["records"] for source in summary["inputs"]] == [2, 0, 1]
    assert any("5 records without residues" in warning for warning in summary["warnings"])


def test_headers_reach_the_index_unchanged(write):
    paths, _ = write('>sp|A/1|B\t x "y",\t z \nMK\n>é,"\'\\\nAC\n'.encode() + b">c\xe9\nAA\n")
    index = index_of(paths)
    assert index["id"] == ["sp|A/1|B", "é,\"'\\", "cé"]
    assert index["description"] == [' x "y",\t z ', "", ""]
    assert index["flags"] == ["", "", "header_latin1"]


def test_a_repeated_record_is_kept_with_a_warning(write, caplog):
    paths, summary = write(b">a\nMK\n>b\nAC\n>a other words\nMK\n")
    assert index_of(paths)["duplicate_of"] == [None, None, 0]
    warning = "1 of 3 records repeats the id and sequence of an earlier one"
    assert summary["warnings"] == [warning]
    assert ("WARNING", warning) in [(r.levelname, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize(
    ("contents", "options", "words"),
    [
        ([b""], {}, ["a.fasta", "empty"]),
        ([b"hello\n"], {}, ["a.fasta", "not FASTA"]),
        ([b">a\nMK\n>b\nM1K\n"], {}, ["a.fasta", "record 2 'b'", "'1'", "residue 2 "]),
        ([b">a\nMK\n", b">b\nM-K\n"], {}, ["b.fasta", "record 1 'b'", "'-'"]),
        ([b">a\nMK\n>b\n>c\nAC\n"], {}, ["a.fasta", "record 2 'b' (line 3)", "no residues"]),
        ([b">a\n>b\n"], {"empty_sequences": "skip"}, ["a.fasta", "no record has residues"]),
        (
            [b">a\nMK\n>b\nMKVLA\n"],
            {"long_sequences": "error", "max_length": 4},
            ["a.fasta", "record 2 'b' (line 3)", "5 residues", "max_length (4)"],
        ),
        (
            [b">a\nMK\n"],
            {"long_sequences": "window", "max_length": 9, "window_overlap": 9},
            ["window_overlap (9)"],
        ),
        (
            [b">e\n>a\nMK\n>b\nAC\n", b">c\nAC\n>e\n>e2\n>a\nMKV\n>b\nAC\n>c\nCC\n"],
            {"empty_sequences": "skip"},
            [
                "2 records",
                "'a' (",
                "a.fasta record 2 and ",
                "b.fasta record 4)",
                "'c' (",
                "b.fasta record 1 and ",
                "b.fasta record 6)",
                "unique",
            ],
        ),
    ],
)
def test_faults_of_the_user_are_one_line_and_leave_nothing(
    write, tmp_path, contents, options, words
):
    with pytest.raises(UserError) as caught:
        write(*contents, shards=2, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


def test_record_numbers_in_messages_count_across_the_blocks_of_a_large_file(write):
    records = [b">r%d\n%s\n" % (i, b"ACDEFGHIKL" * 100 + b"A" * i) for i in range(3000)]
    records[500] = records[2500] = b">e\n"
    records[2900] = b">r2499\nMK\n"
    content = b"".join(records)
    assert len(content) > 4 * BLOCK_SIZE
    with pytest.raises(UserError, match=r"a\.fasta: .*'r2499' \(records 2500 and 2901\)"):
        write(content, empty_sequences="skip", long_sequences="full")


def test_many_conflicting_ids_are_not_all_listed(write):
    records = b"".join(b">id%d\n%s\n" % (i % 50, b"A" * (i + 1)) for i in range(100))
    with pytest.raises(UserError, match=r"50 records.*'id9' \(records 10 and 60\), …;") as caught:
        write(records)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"none\.fasta: cannot be read"):
        cut_into(Paths(tmp_path / "out"), [tmp_path / "none.fasta"], 1)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_what_was_published_before_as_it_was(write, tmp_path):
    paths, _ = write(b">a\nMK\n>b\nAC\n", shards=2)
    before = {path: path.read_bytes() for path in files_below(paths.root)}
    with pytest.raises(UserError):
        write(b">a\nMKV\n>b\nA1\n", shards=2)
    assert {path: path.read_bytes() for path in files_below(paths.root)} == before


def test_only_the_declared_files_remain(write):
    leftover = write(b">a\nMK\n")[0].work / "staging"
    leftover.mkdir()
    (leftover / "records.fasta").write_text("of a run that was killed")
    paths, _ = write(b">a\nMK\n>b\nAC\n", shards=2)
    declared = [paths.shard_index, paths.shard_skipped, paths.sharding, paths.sharding_seconds]
    for shard in range(2):
        declared += paths.shard_files(shard)
    assert files_below(paths.root) == sorted(declared)
    assert not leftover.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_the_input_is_read_only_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = b">a\nMK\n>b\nAC\n>c\nMK\n"
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(content),))
    writer.start()
    paths = Paths(tmp_path / "out")
    cut_into(paths, [pipe], 1)
    writer.join()
    assert shard_records(paths, 1) == [[(0, "MK"), (1, "AC")]]


def test_offsets_stay_right_where_row_numbers_grow_a_digit(write):
    sequences = [b"ACDEFGHIKLMNPQRSTVWY"[i % 20 :][:5] + b"MK" * (i // 20) for i in range(1100)]
    fasta = b"".join(b">r%d\n%s\n" % pair for pair in enumerate(sequences))
    paths, _ = write(fasta, shards=3, deduplicate=False, max_length=10_000)
    found = [record for shard in shard_records(paths, 3) for record in shard]
    assert found == [(row, sequence.decode()) for row, sequence in enumerate(sequences)]
