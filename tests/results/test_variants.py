"""Mutations scored by masked marginals; what is wrong with the table is one line that says so."""

import csv
import io
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packedesm.alphabet import STANDARD
from packedesm.cli import main
from packedesm.files import write_record
from packedesm.paths import Paths
from tests.workflow import BIN

RECORDS = {"sp|P1|A": "MKVLAW", "short": "ACDX", "a,b": "WYVTSRQP", "sp|P2|B": "MK"}
LENGTHS = {"a,b": 12}  # truncated


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a run as far as this command reads them, with an id that comes twice."""
    paths = Paths(tmp_path_factory.mktemp("results"))
    ids = [*RECORDS, "short"]
    texts = [RECORDS[name] for name in ids]
    lengths = pa.array([LENGTHS.get(name, len(RECORDS[name])) for name in ids], pa.int32())
    embedded = pa.array(list(map(len, texts)), pa.int32())
    index = {"id": ids, "length": lengths, "embedded_length": embedded}
    pq.write_table(pa.table(index), paths.index)
    np.save(paths.residue_offsets, np.cumsum([0, *map(len, texts)]))
    np.save(paths.residue_letters, np.frombuffer("".join(texts).encode(), "S1"))
    numbers = np.random.default_rng(4).standard_normal((sum(map(len, texts)), 20))
    np.save(paths.root / "masked_marginals.npy", numbers.astype(np.float32))
    arrays = {"masked_marginals.npy": {}}
    write_record(paths.manifest, {"format": 2, "records": len(ids), "arrays": arrays})
    return paths.root


@pytest.fixture
def variants(results, tmp_path, capsys):
    """Return a function that runs the command on a table, and gives status, output and error."""

    def run(table: str | bytes, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "mutations.csv"
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
        status = main(["variants", str(results), "--mutations", str(path), *options])
        out, error = capsys.readouterr()
        return status, out, error

    return run


def expected(results, name: str, *mutations: str) -> float:
    """Return what a plain reading of the arrays gives."""
    row = list(RECORDS).index(name)
    first = sum(map(len, list(RECORDS.values())[:row]))
    numbers = np.load(results / "masked_marginals.npy").astype(np.float64)
    return sum(
        numbers[first + int(m[1:-1]) - 1, STANDARD.index(m[-1])]
        - numbers[first + int(m[1:-1]) - 1, STANDARD.index(m[0])]
        for m in mutations
    )


def test_scores_are_differences_of_log_probabilities_and_add_up(variants, results):
    status, out, error = variants(
        'id,mutations\nsp|P1|A,K2R\nsp|P1|A,M1A:W6C\nshort,C2C\n"a,b",P8Y\n'
    )
    assert (status, error) == (0, "")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["id", "mutations", "score"]
    assert [row[:2] for row in rows] == [
        ["sp|P1|A", "K2R"],
        ["sp|P1|A", "M1A:W6C"],
        ["short", "C2C"],
        ["a,b", "P8Y"],
    ]
    found = [float(row[2]) for row in rows]
    assert found[0] == pytest.approx(expected(results, "sp|P1|A", "K2R"), abs=1e-6)
    assert found[1] == pytest.approx(expected(results, "sp|P1|A", "M1A", "W6C"), abs=1e-6)
    assert found[2] == 0
    assert found[3] == pytest.approx(expected(results, "a,b", "P8Y"), abs=1e-6)


@pytest.mark.parametrize(
    "table",
    [
        b"\xef\xbb\xbfid,mutations\nshort,A1G\n",
        b"id,mutations\r\nshort,A1G\r\n",
        b"id,mutations\rshort,A1G\r",
        b'"id","mutations"\n"short","A1G"',
        b"id, mutations\n\n short , A1G \n\n,\n",
    ],
    ids=["byte order mark", "CRLF", "CR", "quoted", "blanks"],
)
def test_a_table_as_other_programs_write_it_is_read(variants, table):
    status, out, error = variants(table)
    assert (status, error) == (0, "")
    assert out == variants(b"id,mutations\nshort,A1G\n")[1]


def test_other_columns_are_left_alone_in_any_order(variants):
    assert variants("note,mutations,id\nx,A1G,short\n") == variants("id,mutations\nshort,A1G\n")


WRONG = {
    "wild type": ("short,A2G", "line 3: A2G: at position 2 of 'short' stands C, not A"),
    "second of two": ("short,A1G:A2G", "line 3: A2G: at position 2 of 'short' stands C, not A"),
    "unknown id": ("sp|P1|B,M1A", "line 3: no record of the results has the id 'sp|P1|B'; near it"),
    "beyond the end": ("short,W5A", "line 3: W5A: 'short' ends at position 4"),
    "truncated": (
        '"a,b",A9G',
        "line 3: A9G: 'a,b' ends at position 12, of which the first 8 were embedded (max_length)",
    ),
    "mutant": ("short,A1B", "line 3: A1B: B is none of the 20 residues that have a score"),
    "X stands there": ("short,X4A", "line 3: X4A: X is none of the 20 residues"),
    "stop": ("short,A1*", "line 3: 'A1*' is no mutation, such as A42G"),
    "small letters": ("short,a1g", "line 3: 'a1g' is no mutation"),
    "position 0": ("short,A0G", "line 3: 'A0G' is no mutation"),
    "no number": ("short,AG", "line 3: 'AG' is no mutation"),
    "another script": ("short,A\u0661G", "line 3: 'A\u0661G' is no mutation"),
    "huge": ("short,A99999999999999999999G", "line 3: 'A99999999999999999999G' is no mutation"),
    "nothing": ("short,", "line 3: '' is no mutation"),
    "no id": (",A1G", "line 3: has no id"),
    "twice": ("short,A1G:A1C", "line 3: 'A1G:A1C' changes position 1 twice"),
    "one field": ("short", "line 3: has 1 field, the header 2"),
    "three fields": ("short,A1G,C2A", "line 3: has 3 fields, the header 2; quote a field"),
    "quote": ('short,"A1G"x', "line 3: is not a line of CSV"),
    "open quote": ('short,"A1G', "line 3: is not a line of CSV"),
    "NUL": ("short,A1\0G", "line 3: "),
    "escape": ("short,A1\x1b[31mG", r"line 3: 'A1\x1b[31mG' is no mutation"),
}


@pytest.mark.parametrize(("line", "text"), WRONG.values(), ids=WRONG)
def test_a_line_that_is_wrong_is_named_and_nothing_is_written(variants, tmp_path, line, text):
    target = tmp_path / "scores.csv"
    status, out, error = variants(f"id,mutations\nshort,A1G\n{line}\n", "-o", str(target))
    assert status == 2
    assert out == ""
    (said,) = error.splitlines()
    assert text in said
    assert said.startswith(f"packedesm: {tmp_path}")
    assert not target.exists()


HEADERS = {
    "empty": (b"", "is empty; its first line must be the header id,mutations"),
    "none": (b"short,A1G\n", "line 1: the header must name id and mutations"),
    "none, told": (b"short,A1G\n", "the first line must be id,mutations"),
    "several": (b"short,A1G:C2S\n", "the first line must be id,mutations"),
    "singular": (b"id,mutation\n", "for 'mutation', did you mean mutations?"),
    "capitals": (b"ID,mutations\n", "for 'ID', did you mean id?"),
    "semicolons": (b"id;mutations\nshort;A1G\n", "separate fields by commas, not semicolons"),
    "tabs": (b"id\tmutations\nshort\tA1G\n", "separate fields by commas, not tabs"),
    "twice": (b"id,id,mutations\n", "each once"),
    "UTF-16": ("id,mutations\n".encode("utf-16"), "is not text in UTF-8"),
}


@pytest.mark.parametrize(("table", "text"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_wrong_is_one_line(variants, table, text):
    status, out, error = variants(table)
    assert (status, out) == (2, "")
    (said,) = error.splitlines()
    assert text in said


def test_an_id_is_found_by_one_that_is_near(variants):
    assert "near it are 'sp|P2|B', 'sp|P1|A'" in variants("id,mutations\nsp|P1|B,M1A\n")[2]


def test_the_line_is_that_of_the_file_where_a_field_goes_over_several(variants):
    table = 'id,note,mutations\nshort,"two\nlines",A1G\nshort,x,A2G\n'
    assert "line 4: A2G" in variants(table)[2]


def test_a_file_that_is_not_there_or_a_folder_is_one_line(results, tmp_path, capsys):
    for path, text in ((tmp_path / "none.csv", "no such file"), (tmp_path, "is a folder")):
        assert main(["variants", str(results), "--mutations", str(path)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert text in said


def test_scores_go_into_a_file(variants, tmp_path):
    table = "id,mutations\nshort,A1G\n"
    status, out, _ = variants(table, "-o", str(tmp_path / "scores.csv"))
    assert (status, out) == (0, "")
    assert (tmp_path / "scores.csv").read_text() == variants(table)[1]


def test_mutations_are_read_from_standard_input_too(variants, results):
    table = b"id,mutations\nshort,A1G\n"
    command = [str(BIN / "packedesm"), "variants", str(results), "--mutations", "-"]
    done = subprocess.run(command, input=table, capture_output=True)
    assert (done.stdout.decode(), done.stderr) == (variants(table)[1], b"")
    done = subprocess.run(command, input=table + b"short,A2G\n", capture_output=True)
    assert done.stderr.startswith(b"packedesm: standard input, line 3: A2G: at position 2")


def test_a_reader_that_leaves_early_is_no_fault(results, tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("id,mutations\n" + "short,A1G\n" * 20_000)
    command = f"'{BIN}/packedesm' variants '{results}' --mutations '{path}'"
    line = f"set -o pipefail; {command} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "id,mutations,score\n", "")


def test_scores_that_lead_nowhere_are_told(results, tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("id,mutations\nshort,A1G\n")
    line = f"'{BIN}/packedesm' variants '{results}' --mutations '{path}' >&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "packedesm: standard output: is closed; send it to a file or a program\n"


def test_a_damaged_index_is_one_line_and_names_the_file(results, tmp_path, capsys):
    copy = shutil.copytree(results, tmp_path / "copy")
    (copy / "index.parquet").write_bytes(b"no Parquet")
    (tmp_path / "mutations.csv").write_text("id,mutations\nshort,A1G\n")
    arguments = ["variants", str(copy), "--mutations", str(tmp_path / "mutations.csv")]
    assert main(arguments) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{copy / 'index.parquet'}: is not as it was written, it is damaged" in said


def test_results_without_marginals_are_told_so(tmp_path, capsys):
    write_record(Paths(tmp_path).manifest, {"format": 2, "records": 1, "arrays": {"mean.npy": {}}})
    assert main(["variants", str(tmp_path), "--mutations", "x.csv"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "has no masked_marginals" in said
    assert "mean.npy" in said
