"""Libraries that are no part of the environment, beside it: MultiQC, openTSNE, FAISS.

By make test-extras, which installs each in a folder of its own. What uses one runs in a process
that finds it there.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from packedesm.files import read_record
from packedesm.paths import Paths
from tests.report.finished_run import record, report
from tests.results.made_up import write_results
from tests.workflow import BIN

SWITCH = "PACKEDESM_TEST_EXTRAS"  # the folder that make test-extras installs in
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(SWITCH not in os.environ, reason="by make test-extras"),
]
SAMPLES = ("human", "β-lactamases (E. coli) v1.2 #3 & co")


def run(extra: str, *command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that finds one of the libraries; return what it printed."""
    there = [str(Path(os.environ[SWITCH]) / extra), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(there),
        "MULTIQC_NO_VERSION_CHECK": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([*map(str, command)], env=environment, cwd=cwd, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return {line["Sample"]: line for line in csv.DictReader(handle, delimiter="\t")}


def test_multiqc_shows_each_sample_in_a_row_of_its_own(tmp_path):
    report(tmp_path / "results" / SAMPLES[0], records=[record()])
    report(tmp_path / "results" / SAMPLES[1], shards=2)
    said = run("multiqc", sys.executable, "-m", "multiqc", "results", "--no-ansi", cwd=tmp_path)
    assert "packedesm_statistics: Found 2 General Statistics columns" in said
    data = tmp_path / "multiqc_data"
    metrics = read_record(Paths(tmp_path / "results" / SAMPLES[0]).metrics)
    statistics = table(data / "multiqc_general_stats.txt")
    assert set(statistics) == set(SAMPLES)
    (fill,) = [value for name, value in statistics[SAMPLES[0]].items() if name.endswith("-fill")]
    assert float(fill) == pytest.approx(100 * metrics["packing"]["all"]["fill"])
    verified = {
        line[name] for line in statistics.values() for name in line if name.endswith("-verified")
    }
    assert verified == {"yes", "not verified"}
    for plot in ("packing_plot", "time_plot", "accuracy_table"):
        assert set(table(data / f"multiqc_packedesm_{plot}.txt")) == set(SAMPLES)
    page = (tmp_path / "multiqc_report.html").read_text("utf-8")
    assert "Tokens that packing computes" in page
    log = (data / "multiqc.log").read_text("utf-8")
    assert "[WARNING]" not in log and "[ERROR" not in log


MAP = """
import sys
from packedesm.options import ReportOptions
from packedesm.paths import Paths
from packedesm.report.page import write_report
write_report(Paths(sys.argv[1]), ReportOptions("tsne", sys.argv[2], "none", 1))
"""


def test_the_map_of_neighbourhoods_is_the_same_on_every_run(tmp_path):
    fasta = "".join(f">p{row}\nM{'AC' * row}\n" for row in range(40))
    annotations = tmp_path / "table.tsv"
    annotations.write_text("id\tkind\n" + "".join(f"p{row}\tk{row % 3}\n" for row in range(30)))
    report(tmp_path / "sample", fasta=fasta, records=[record()])
    pages = []
    for threads in ("1", "2"):
        os.environ["OMP_NUM_THREADS"] = threads
        run("map", sys.executable, "-c", MAP, tmp_path / "sample", annotations)
        pages.append((tmp_path / "sample" / "report.html").read_text("utf-8"))
    assert pages[0] == pages[1]
    assert "Who is near to whom, by kind" in pages[0]
    assert "Of 10 proteins shown it has no" in " ".join(pages[0].split())
    assert pages[0].count("<svg") == 9


def test_an_index_finds_most_neighbours_and_the_same_on_every_run(tmp_path):
    rng = np.random.default_rng(1)
    families = rng.standard_normal((100, 32))
    values = families[rng.integers(0, 100, 3000)] + 0.3 * rng.standard_normal((3000, 32))
    values[7] = 0
    results = write_results(tmp_path / "r", values.astype(np.float32))
    tables = []
    for name, how in (("a", "--approximate"), ("b", "--approximate"), ("exact", "--exact")):
        path = tmp_path / f"{name}.tsv"
        said = run("map", BIN / "packedesm", "neighbours", results, how, "-o", path)
        tables.append(path.read_text())
        assert ("it can miss some" in said) == (how == "--approximate")
    assert tables[0] == tables[1]
    pairs = [{tuple(line.split("\t")[-2:]) for line in text.splitlines()} for text in tables]
    assert len(pairs[0] & pairs[2]) > 0.95 * len(pairs[2])
    cosines = [
        {tuple(line.split("\t")[-2:]): line.split("\t")[3] for line in text.splitlines()}
        for text in tables
    ]
    assert all(cosines[2][pair] == cosines[0][pair] for pair in pairs[0] & pairs[2])  # exact
