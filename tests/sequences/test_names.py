"""No record loses its name: where it stood in the input, what was skipped, and what its id is."""

import pandas as pd
import pyarrow.parquet
import pytest

from packedesm.errors import UserError
from packedesm.paths import Paths
from packedesm.sequences.fasta import BLOCK_SIZE
from packedesm.sequences.shards import write_shards
from packedesm.sequences.summary import read_summary, reading_sharded
from tests.typed import shard_options


@pytest.fixture
def write(tmp_path):
    """Shard files named a.fasta, b.fasta; return paths, the index and the summary."""

    def write(*contents, **options):
        files = [tmp_path / f"{name}.fasta" for name, _ in zip("ab", contents, strict=False)]
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)
        paths = Paths(tmp_path / "out")
        summary = write_shards(files, paths, shard_options(**options), shards=1, width=64)
        return paths, pyarrow.parquet.read_table(paths.shard_index).to_pydict(), summary

    return write


def skipped(paths: Paths) -> list[list[str]]:
    return [line.split("\t") for line in paths.shard_skipped.read_text("utf-8").splitlines()]


def test_skipped_records_are_told_and_listed(write, tmp_path, caplog):
    paths, _, summary = write(
        b">a\n\n>b x\nMK\n>c y\n*\n", b"\n>d\n>e\nAC\n>f\n", empty_sequences="skip"
    )
    a, b = str(tmp_path / "a.fasta"), str(tmp_path / "b.fasta")
    assert skipped(paths) == [
        ["path", "record", "line", "id", "reason"],
        [a, "1", "1", "a", "no residues"],
        [a, "3", "5", "c", "no residues"],
        [b, "1", "2", "d", "no residues"],
        [b, "3", "5", "f", "no residues"],
    ]
    assert summary["skipped_empty"] == 4
    warning = (
        "4 records without residues were skipped and have no row: 'a', 'c', 'd', 'f' (all are in "
        "skipped.tsv)"
    )
    assert summary["warnings"] == [warning]
    assert ("WARNING", warning) in [(r.levelname, r.getMessage()) for r in caplog.records]


def test_where_nothing_is_skipped_the_list_is_a_head_line(write):
    assert len(skipped(write(b">a\nMK\n")[0])) == 1


def test_of_many_skipped_records_ten_are_told_and_all_are_listed(write):
    records = [b">e%d\n" % k for k in range(25)]
    paths, _, summary = write(b"".join([*records, b">p\nMK\n"]), empty_sequences="skip")
    assert [line[3] for line in skipped(paths)[1:]] == [f"e{k}" for k in range(25)]
    assert "'e9', … (all" in summary["warnings"][0]
    assert "'e10'" not in summary["warnings"][0]


def test_the_list_of_skipped_records_has_one_line_each_whatever_they_are_called(write):
    ids = "a\tb\x1b[31m\u2028\x85c"
    paths, _, _ = write(f">{ids} \n>p\nMK\n".encode(), empty_sequences="skip", ids="header")
    table = pd.read_csv(paths.shard_skipped, sep="\t")
    assert table["id"].tolist() == ["a\\tb\\x1b[31m\\u2028\\x85c"]


def test_the_list_of_skipped_records_is_checked_when_it_is_read(write):
    paths, _, summary = write(b">a\nMK\n")
    assert "skipped.tsv" in read_summary(paths)["sha256"]
    with reading_sharded(paths, paths.shard_skipped, summary=summary):
        pass


def test_the_index_has_the_number_of_a_record_in_its_file(write):
    _, index, _ = write(
        b">a\n>b\nMK\n>c\n\n>d\n*\n>e\nAC\n", b">f\n>g\n\n>h\nWW\n", empty_sequences="skip"
    )
    assert index["id"] == ["b", "e", "h"]
    assert index["row"] == [0, 1, 2]
    assert index["file"] == [1, 1, 2]
    assert index["record"] == [2, 5, 3]


def test_numbers_and_lines_are_right_across_the_blocks_of_a_large_file(write):
    records = [b">r%d\n%s\n" % (k, b"ACDEFGHIKL" * 100) for k in range(3000)]
    for empty in (0, 1500, 2998):
        records[empty] = b">e%d\n" % empty
    content = b"".join(records)
    assert len(content) > 2 * BLOCK_SIZE
    paths, index, _ = write(content, empty_sequences="skip")
    assert index["record"] == [k + 1 for k in range(3000) if k not in (0, 1500, 2998)]
    assert [line[1:4] for line in skipped(paths)[1:]] == [
        ["1", "1", "e0"],
        ["1501", "3000", "e1500"],
        ["2999", "5995", "e2998"],
    ]


def test_refusals_name_the_line(write):
    with pytest.raises(UserError, match=r"a\.fasta: record 2 'b' \(line 4\) has no residues"):
        write(b">a\nMK\nVL\n>b x\n")
    with pytest.raises(UserError, match=r"a\.fasta: record 2 'b' \(line 4\) has 5 residues"):
        write(b"\n>a\nMK\n>b x\nMKVLA\n", long_sequences="error", max_length=4)


TWO = b">prot 1\nMK\n>prot 2\nAC\n"


def test_ids_that_differ_after_the_first_blank_are_refused_with_the_way_out(write):
    for text in (TWO, TWO.replace(b" ", b"\t")):
        with pytest.raises(UserError, match="an id ends at the first blank") as caught:
            write(text)
        assert "'prot' (records 1 and 2)" in str(caught.value)
        assert "set ids to header" in str(caught.value)


def test_the_way_out_is_named_only_where_it_leads_out(write):
    for text in (b">prot 1\nMK\n>prot 1\nAC\n", b">prot\nMK\n>prot\nAC\n"):
        with pytest.raises(UserError, match=r"; make the ids unique$"):
            write(text)


def test_the_whole_header_can_be_the_id(write):
    _, index, _ = write(TWO + b">prot\t3 \t\nWW\n>x\nMM\n", ids="header")
    assert index["id"] == ["prot 1", "prot 2", "prot\t3", "x"]
    assert index["description"] == [""] * 4
    assert write(b">x y z\nMM\n")[1]["id"] == ["x"]


def test_whole_headers_that_are_not_utf8_are_ids(write):
    _, index, _ = write(b">prot \xe9\nMK\n>prot b\nAC\n", ids="header")
    assert index["id"] == ["prot é", "prot b"]
    assert index["flags"] == ["header_latin1", ""]


def test_the_same_whole_header_twice_is_refused(write):
    # Blanks at the end cannot be seen, and do not tell two ids apart.
    with pytest.raises(UserError, match=r"'prot 1' \(records 1 and 2\); make the ids unique$"):
        write(b">prot 1\nMK\n>prot 1 \t\nAC\n", ids="header")


def test_a_header_that_begins_with_a_blank_has_no_id(write):
    with pytest.raises(UserError, match="the header has no id"):
        write(b"> prot 1\nMK\n", ids="header")


def test_messages_show_the_whole_header_where_it_is_the_id(write):
    with pytest.raises(UserError, match=r"record 2 'prot 2' \(line 3\)"):
        write(b">prot 1\nMK\n>prot 2\nM1\n", ids="header")
    with pytest.raises(UserError, match=r"record 1 'prot 1' \(line 1\) has no residues"):
        write(b">prot 1\n", ids="header")
