import shutil
from subprocess import CompletedProcess

import pytest

from packedesm.files import file_digest, read_json
from packedesm.paths import Paths
from packedesm.results.reader import Results
from tests.commands import state_of
from tests.rules.conftest import REPEATED
from tests.workflow import ROOT, jobs_run, snakemake


def test_the_report_is_one_page_that_says_what_was_done(run_rule):
    paths = run_rule("report", "results/sixty/report.html")
    page = paths.report.read_text()
    assert "<svg" in page
    assert "esm2_tiny_random" in page
    assert "random" in page.lower()
    assert str(read_json(paths.verification)["sequences"]) in page


def test_a_table_colours_the_maps_and_one_that_is_none_stops_the_run_at_once(with_inputs, sixty):
    page = f"results/{sixty.stem}/report.html"
    folder = with_inputs(page)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "\nreport: {annotations: table.tsv}\n")
    table = folder / "table.tsv"
    only = ["--allowed-rules", "report", "--rerun-triggers", "mtime", "--force"]
    table.write_text("id\tkind\nx\n")
    failed = snakemake(folder, page, *only)
    assert failed.returncode == 1
    assert "table.tsv: line 2 has 1 cells, the first line 2" in failed.stdout
    assert not (folder / page).exists()
    table.write_text(f"id\tkind\n{min(REPEATED)}\ty\n")
    done = snakemake(folder, page, *only)
    assert done.returncode == 0, done.stdout
    assert "The vectors by kind" in (folder / page).read_text()
    assert (folder / page).with_name("packedesm_mqc.json").exists()


@pytest.mark.slow
def test_a_page_that_was_edited_is_drawn_again_and_costs_no_manifest(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    paths = Paths(folder / "results" / "sixty")
    digest = file_digest(paths.report)
    paths.report.write_text(paths.report.read_text() + "<!-- mine -->")
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    assert jobs_run(done.stdout) == {"report", "manifest"}
    assert Results(paths.root).manifest["sha256"]["report.html"] == file_digest(paths.report)
    assert file_digest(paths.report) == digest


MADE_BY_A_RULE = f"""
include: "{ROOT}/Snakefile"
rule table:
    output: "made.tsv"
    shell: "false"
"""


@pytest.mark.slow
def test_a_table_that_is_nowhere_and_made_by_no_rule_is_told_before_any_step(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    before = state_of(folder / "results")
    (folder / "Snakefile").write_text(MADE_BY_A_RULE)

    def planned(table: str) -> CompletedProcess[str]:
        asked = ["all", "--dry-run", "--config", f"report={{'annotations': '{table}'}}"]
        return snakemake(folder, *asked, snakefile=folder / "Snakefile")

    refused = planned("nowhere.tsv")
    assert refused.returncode == 1
    assert "nowhere.tsv: is not there, and no rule makes it" in refused.stdout
    assert state_of(folder / "results") == before
    made = planned("made.tsv")
    assert made.returncode == 0, made.stdout
    assert jobs_run(made.stdout) == {"table", "report", "manifest"}
