import os

import pytest

from packedesm.cli import main
from packedesm.errors import UserError
from packedesm.files import file_digest
from packedesm.options import ReportOptions
from packedesm.report import annotations
from packedesm.report.annotations import check_shown, read_annotations
from packedesm.results.request import Request
from tests.commands import the_line

TABLE = "family\tid\tmass\nkinase\ta\t1.5\n\t b\t2\nkinase\tc\t\n"


def shown(table="none", column="none", map_="pca") -> ReportOptions:
    return ReportOptions(map_, str(table), column, 1)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("column", "name", "values"),
    [
        ("none", "family", {"a": "kinase", "c": "kinase"}),
        ("family", "family", {"a": "kinase", "c": "kinase"}),
        ("mass", "mass", {"a": "1.5"}),
    ],
)
def test_values_are_found_by_the_id_and_empty_ones_are_none(table, column, name, values):
    found = read_annotations(shown(table, column), ["a", "b", "c", "d"])
    assert (found.path, found.column, found.values) == (table, name, values)
    assert found.sha256 == file_digest(table)
    assert set(found.ids) == {"a", " b", "c"}


def test_without_a_column_called_id_the_first_holds_them(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b'\xef\xbb\xbfprotein\tkind\r\na\t"x\ty"\r\n\r\nb\tz\r\na\t"x\ty"\r\n')
    found = read_annotations(shown(path), ["a"])
    assert (found.column, found.values) == ("kind", {"a": "x\ty"})


def test_without_a_table_there_are_no_values():
    assert read_annotations(shown(), ["a"]) is None


@pytest.mark.parametrize(
    ("content", "column", "said"),
    [
        (b"", "none", "must name two columns or more"),
        (b"id\na\n", "none", "must name two columns or more"),
        (b"id\tx\tx\n", "none", "names 'x' twice"),
        (b"id\tx\n", "y", "has no column 'y'; it has 'id', 'x' (config key report.column)"),
        (b"id\tx\na\t1\nb\n", "none", "line 3 has 1 cells, the first line 2"),
        (b"id\tx\na\t1\na\t2\n", "none", "line 3: 'a' had another value before"),
        (b'id\tx\na\t"1\nb\t2\n', "none", "is no table of tab-separated values"),
        (b"id\tx\na\t\xff\n", "none", "is no text in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_said_in_a_line(tmp_path, content, column, said):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        check_shown(shown(path, column))
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_table_that_is_not_there_and_a_column_of_none_are_said(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; check config key report"):
        check_shown(shown(tmp_path / "gone.tsv"))
    with pytest.raises(UserError, match="'mass' is a column of no table"):
        check_shown(shown(column="mass"))


def test_a_map_whose_library_is_not_there_is_said_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(annotations, "LIBRARY", "no_such_library")
    with pytest.raises(UserError, match=r"pip install 'packedesm\[map\]'"):
        check_shown(shown(map_="tsne"))
    check_shown(shown(map_="tsne"), library=False)  # another Python writes the report
    check_shown(shown())


def test_a_bad_table_is_said_before_embedding_begins(tmp_path, checkpoints, capsys):
    fasta, table = tmp_path / "in.fasta", tmp_path / "table.tsv"
    fasta.write_text(">a\nMKV\n")
    table.write_text("id\tx\na\n")
    more = ["--checkpoints", str(checkpoints), "--report-annotations", str(table)]
    assert main(["embed", str(fasta), "-o", str(tmp_path / "out"), *more]) == 2
    assert "line 2 has 1 cells" in the_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_table_that_can_be_read_only_once_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="/pipe: can be read only once, and is read again"):
        check_shown(shown(pipe))


def test_requests_of_before_the_report_was_no_part_of_them_asked_for_the_same():
    request = Request((), (), {"ids": "first_word"}, "m", {})
    content = request.as_json()
    for options in ({}, {"report": {"map": "tsne"}}):
        content["options"] = options
        assert Request.from_json(content).differences(request, finished=True) == []
