import csv
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from packedesm.cli import main
from packedesm.results import neighbours
from packedesm.results.neighbours import COLUMNS
from tests.commands import the_line
from tests.results.made_up import write_results
from tests.workflow import BIN

rng = np.random.default_rng(5)
VALUES = rng.standard_normal((6, 8)).astype(np.float32)
VALUES[4] = VALUES[1]
SEQUENCES = ["MA", "MB", "MC", "MD", "MB", "ME"]
IDS = ["sp|P1|A", 'odd "id"\twith a tab', "c", "c", "copy of b", "é"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_results(tmp_path_factory.mktemp("n") / "results", VALUES, SEQUENCES, ids=IDS)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def listed(capsys, *arguments) -> list[dict[str, str]]:
    assert main(["neighbours", *map(str, arguments)]) == 0
    return table(capsys.readouterr().out)


def refused(capsys, *arguments) -> str:
    """Return the line that the command says in place of a table."""
    assert main(["neighbours", *map(str, arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    return the_line(error)


def test_the_table_has_ids_as_they_are_rows_and_duplicates_apart(results, capsys):
    lines = listed(capsys, results, "-k", "2")
    assert tuple(lines[0]) == COLUMNS
    of_b = [line for line in lines if line["query_row"] == "1"]
    assert [(line["rank"], line["duplicate"]) for line in of_b] == [
        *(("0", "yes"), ("1", "no"), ("2", "no")),
    ]
    assert (of_b[0]["query"], of_b[0]["neighbour"]) == (IDS[1], IDS[4])
    assert of_b[0]["cosine"] == "1.00000000"
    units = VALUES / np.linalg.norm(VALUES, axis=1, keepdims=True)
    for line in lines:
        query, row = int(line["query_row"]), int(line["neighbour_row"])
        assert (line["query"], line["neighbour"]) == (IDS[query], IDS[row])
        assert query != row
        assert float(line["cosine"]) == pytest.approx(float(units[query] @ units[row]), abs=1e-6)
    assert len(lines) == 6 * 2 + 2


def test_a_file_holds_what_standard_output_would(results, capsys, tmp_path):
    lines = listed(capsys, results)
    assert listed(capsys, results, "-o", tmp_path / "table.tsv") == []
    assert table((tmp_path / "table.tsv").read_text("utf-8")) == lines


def test_a_damaged_index_is_one_line_and_names_the_file(capsys, tmp_path):
    for damage in (b"no Parquet", b"PAR1" + bytes(40) + b"PAR1", b""):
        index = write_results(tmp_path / str(len(damage)), VALUES) / "index.parquet"
        index.write_bytes(damage)
        assert main(["neighbours", str(index.parent)]) == 1
        line = the_line(capsys.readouterr().err)
        assert f"{index}: is not as it was written, it is damaged" in line


def test_other_results_are_asked_for_and_a_sequence_in_both_is_a_duplicate(
    results, capsys, tmp_path
):
    asked = write_results(tmp_path / "asked", VALUES[[2, 1]] * 2, ["new", "MB"])
    lines = listed(capsys, results, "--queries", asked, "-k", "1")
    pairs = [(line["query"], line["rank"], line["neighbour_row"]) for line in lines]
    assert pairs[:2] == [("p0", "1", "2"), ("p1", "0", "1")]
    assert [rank for _id, rank, _row in pairs] == ["1", "0", "1"]
    assert lines[0]["cosine"] == "1.00000000"


def test_vectors_of_another_layer_are_found_by_its_number(capsys, tmp_path):
    write_results(tmp_path / "r", VALUES, array="max.layer2")
    lines = listed(capsys, tmp_path / "r", "--array", "max", "--layer", "2", "-k", "1")
    assert listed(capsys, tmp_path / "r", "--array", "max", "--layer", "-5", "-k", "1") == lines
    assert len(lines) == 6
    line = refused(capsys, tmp_path / "r", "--array", "max")
    assert "has no max.npy; it holds max.layer2.npy" in line


def test_what_points_nowhere_is_told_and_has_no_line(capsys, tmp_path, caplog):
    values = VALUES.copy()
    values[0], values[3, 1] = 0, np.nan
    caplog.set_level(logging.WARNING)
    lines = listed(capsys, write_results(tmp_path / "r", values))
    assert "2 vectors of mean are zero or not finite" in caplog.text
    assert not {"0", "3"} & {
        line[name] for line in lines for name in ("query_row", "neighbour_row")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--array", "residue"], "give one of mean, cls, max"),
        (["--array", "men"], "give one of mean, cls, max"),
        (["--layer", "7"], "there is no layer 7"),
        (["--layer", "3"], "has no mean.layer3.npy; it holds mean.npy"),
        (["--queries", "."], "not the results of a finished run"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(results, capsys, arguments, said):
    assert said in refused(capsys, results, *arguments)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "²"])
def test_k_is_a_whole_number_from_one_on(results, text, capsys):
    with pytest.raises(SystemExit) as end:
        main(["neighbours", str(results), "-k", text])
    assert end.value.code == 2
    assert "is no whole number from 1 on" in capsys.readouterr().err


def test_vectors_of_another_model_are_not_compared(results, capsys, tmp_path):
    other = write_results(tmp_path / "other", VALUES, sha256="f" * 64)
    line = refused(capsys, results, "--queries", other)
    assert "only vectors of the same weights can be compared" in line
    assert "ffffffffffff" in line


def test_a_failure_leaves_no_table(results, tmp_path, monkeypatch, capsys):
    def broken(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(neighbours, "_lines", broken)
    output = tmp_path / "table.tsv"
    assert main(["neighbours", str(results), "-o", str(output)]) == 1
    assert "no space is left" in the_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_who_closes_standard_output_is_told_so(results):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        command = [str(BIN / "packedesm"), "neighbours", str(results)]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "standard output: No space left on device" in the_line(done.stderr)


def test_a_reader_that_leaves_early_is_no_fault(tmp_path):
    results = write_results(tmp_path / "r", rng.standard_normal((300, 8)).astype(np.float32))
    line = f"set -o pipefail; '{BIN}/packedesm' neighbours '{results}' -k 200 | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout.startswith("query\trank")
    assert done.returncode == 0
    assert "packedesm:" not in done.stderr and "Traceback" not in done.stderr


def test_large_libraries_are_not_loaded(results):
    code = (
        f"from packedesm.cli import main\nmain(['neighbours', {str(results)!r}])\n"
        "import sys\nprint([n for n in ('torch', 'pandas', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)


def test_an_approximate_search_says_what_it_lacks(results, capsys, monkeypatch):
    without_faiss(monkeypatch)
    line = refused(capsys, results, "--approximate")
    assert "pip install 'packedesm[faiss]'" in line


def test_many_proteins_are_searched_approximately_unless_it_is_said_otherwise(
    results, capsys, monkeypatch
):
    expected = listed(capsys, results)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 5)
    without_faiss(monkeypatch)
    line = refused(capsys, results)
    assert "every pair of 6 proteins takes long" in line
    assert line.endswith("or say --exact")
    assert listed(capsys, results, "--exact") == expected


@pytest.mark.parametrize("count", [1, 6, 38, 39, 77, 78, 120])
def test_few_proteins_are_searched_approximately_without_a_word_of_faiss(tmp_path, capfd, count):
    pytest.importorskip("faiss")
    results = write_results(tmp_path / "r", rng.standard_normal((count, 8)).astype(np.float32))
    assert main(["neighbours", str(results), "-k", "3", "--approximate"]) == 0
    found, said = capfd.readouterr()
    assert "WARNING" not in said
    assert main(["neighbours", str(results), "-k", "3", "--exact"]) == 0
    assert found == capfd.readouterr().out


def test_where_all_vectors_point_nowhere_an_approximate_search_finds_nobody(tmp_path, capsys):
    pytest.importorskip("faiss")
    results = write_results(tmp_path / "r", np.zeros((3, 8), np.float32))
    assert listed(capsys, results, "--approximate") == []
