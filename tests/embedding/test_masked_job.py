"""Runs with masked outputs: what they write and tell, and that nothing stops them for good."""

import csv
import io
import logging
import re
import signal

import numpy as np
import pytest

import packedesm
from packedesm.cli import main
from packedesm.config import resolve
from packedesm.embedding.pack import read_packs
from packedesm.esm2.registry import MODELS, TINY
from packedesm.files import file_digest, read_json, read_record
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.pipeline import _passed
from packedesm.reference import whole_proteins
from packedesm.report.words import number, percent
from packedesm.results.merge import merge_shards
from tests.jobs import Sample
from tests.sharp import computing_wrong
from tests.typed import options

OUTPUTS = ["mean", "masked_marginals", "pseudo_perplexity"]
SEQUENCES = {
    "first": "MKVLAWGIRE",
    "short": "ACD",
    "again": "MKVLAWGIRE",
    "long": "WYVTSRQPNMLKIHGFEDCA",
    "odd": "XBUZO",
}
MOST = 12  # residues of a record that are embedded
EMBEDDED = {name: sequence[:MOST] for name, sequence in SEQUENCES.items()}
UNIQUE = [10, 3, 12, 5]  # residues


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "in.fasta"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in SEQUENCES.items()))
    return path


class Run:
    """A finished run of the command, and what it told."""

    def __init__(self, fasta, folder, checkpoints, outputs, *further):
        told = io.StringIO()
        handler = logging.StreamHandler(told)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        asked = ["--outputs", ",".join(outputs), "--max-length", str(MOST)]
        asked += ["--model", TINY, "--checkpoints", str(checkpoints), "--verify-sequences", "0"]
        asked += further
        try:
            assert main(["embed", str(fasta), "-o", str(folder), *asked]) == 0
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        self.folder, self.told = folder, told.getvalue()
        self.results = packedesm.open(folder)
        self.metrics = read_record(Paths(folder).metrics)


@pytest.fixture(scope="module")
def run(fasta, tmp_path_factory, checkpoints):
    folder = tmp_path_factory.mktemp("run") / "out"
    return Run(fasta, folder, checkpoints, OUTPUTS, "--token-budget", "24")


def test_every_record_has_a_line_for_each_residue_that_is_embedded(run):
    results, residues = run.results, list(map(len, EMBEDDED.values()))
    marginals = results.array("masked_marginals")
    assert marginals.shape == (sum(residues), 20)
    assert results.array("pseudo_perplexity").shape == (len(residues),)
    offsets = np.load(run.folder / "residue_offsets.npy")
    assert offsets.tolist() == np.cumsum([0, *residues]).tolist()
    assert results.manifest["arrays"]["masked_marginals.npy"]["columns"] == list(
        "LAGVSERTIDPKQNFYMHWC"
    )
    # The third is the first again.
    assert np.array_equal(marginals[13:23], marginals[:10])
    perplexities = results.array("pseudo_perplexity")
    assert perplexities[2] == perplexities[0] != perplexities[1]


def test_the_letters_of_the_residues_lie_beside_them(run):
    letters = np.load(run.folder / "residue_letters.npy")
    assert letters.dtype == "S1"
    assert letters.tobytes().decode() == "".join(EMBEDDED.values())
    assert "residue_letters.npy" in run.results.manifest["sha256"]


def test_variants_are_scored_from_a_run(run, tmp_path, capsys):
    table = tmp_path / "mutations.csv"
    table.write_text("id,mutations\nagain,K2R:W6C\nlong,K12A\n")
    assert main(["variants", str(run.folder), "--mutations", str(table)]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    marginals = run.results.array("masked_marginals").astype(np.float64)
    columns = {letter: n for n, letter in enumerate("LAGVSERTIDPKQNFYMHWC")}
    second, sixth, last = marginals[14], marginals[18], marginals[34]
    expected = [
        second[columns["R"]] - second[columns["K"]] + sixth[columns["C"]] - sixth[columns["W"]],
        last[columns["A"]] - last[columns["K"]],
    ]
    np.testing.assert_allclose([float(row[2]) for row in rows], expected, atol=1e-6)
    table.write_text("id,mutations\nlong,I13A\n")
    assert main(["variants", str(run.folder), "--mutations", str(table)]) == 2
    said = capsys.readouterr().err
    assert "'long' ends at position 20, of which the first 12 were embedded" in said


def test_the_cost_is_told_before_it_starts(run):
    shard, job, *_ = (line for line in run.told.splitlines() if "one for each residue" in line)
    assert shard.startswith("4 proteins to embed: 30 masked passes")
    assert re.fullmatch(
        r"masked_marginals and pseudo_perplexity of 4 proteins are 30 passes, one for each "
        r"residue, about \d+ s here",
        job,
    )
    assert run.told.index(job) < run.told.index("embedding: ")
    passed = sum(UNIQUE) + sum(residues**2 for residues in UNIQUE)
    assert f"embedding: {passed} of {passed} residues (100.0%)" in run.told


def test_metrics_and_report_tell_masked_passes_apart(run):
    row = run.metrics["throughput"]["all"]
    assert (row["residues"], row["tokens"]) == (30, 38)
    assert row["masked_passes"] == 30
    assert row["masked_tokens"] == sum(n * (n + 2) for n in UNIQUE)
    own = row["seconds"] - row["masked_seconds"]
    assert 0 < own < row["seconds"]
    assert row["residues_per_second"] == pytest.approx(30 / own)
    assert row["masked_passes_per_second"] == pytest.approx(30 / row["masked_seconds"])
    geometry = MODELS[TINY]
    passes = [n + 2 for n in UNIQUE] + [n + 2 for n in UNIQUE for _ in range(n)]
    assert row["flops"] == pytest.approx(geometry.flops(passes))
    packing = run.metrics["packing"]["all"]
    assert (packing["tokens"], packing["masked_tokens"]) == (38, row["masked_tokens"])
    assert 0.5 < packing["masked_fill"] <= 1
    report = (run.folder / "report.html").read_text()
    assert "30 masked passes" in report
    table = (run.folder / "throughput.tsv").read_text()
    assert "masked_passes_per_second" in table


def expect_masked_passes_told(alone: Run, row: dict) -> None:
    """The page's table of speed and what MultiQC shows are of the masked passes, the only ones."""
    page = (alone.folder / "report.html").read_text()
    speed = page.split("<h2>How fast it was</h2>")[1].split("</table>")[0]
    assert "unknown" not in speed
    cells = [" ".join(cell.split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", speed)]
    figures = (row["masked_passes_per_second"], row["masked_tokens_per_second"])
    assert cells[3] == "30"
    assert cells[5:7] == [*map(number, figures)]
    packing = alone.metrics["packing"]["all"]
    assert cells[-1] == percent(packing["masked_fill"])
    statistics, bars = (
        read_json(alone.folder / f"packedesm{name}_mqc.json")["data"][alone.folder.name]
        for name in ("", "_packing")
    )
    assert bars == {"masked": row["masked_tokens"]}
    assert statistics["masked_passes_per_second"] == figures[0]
    assert statistics["fill"] == 100 * packing["masked_fill"]


def test_without_vectors_no_record_goes_through_the_model_itself(run, fasta, tmp_path, checkpoints):
    for name in OUTPUTS[1:]:
        alone = Run(fasta, tmp_path / name, checkpoints, [name], "--token-budget", "24")
        assert np.array_equal(alone.results.array(name), run.results.array(name))
        row = alone.metrics["throughput"]["all"]
        assert (row["tokens"], row["masked_passes"]) == (0, 30)
        assert row["residues_per_second"] is None
        assert alone.metrics["packing"]["all"]["fill"] is None
        expect_masked_passes_told(alone, row)
        assert (alone.folder / "residue_letters.npy").exists() == (name == "masked_marginals")


def test_a_run_without_vectors_reports_what_it_made_and_what_was_verified(
    fasta, tmp_path, checkpoints, monkeypatch
):
    monkeypatch.setattr(whole_proteins, "_MOST", 3 + 5 + 10)
    asked = ("--token-budget", "24", "--verify-sequences", "10")
    alone = Run(fasta, tmp_path / "out", checkpoints, ["pseudo_perplexity"], *asked)
    verification = read_record(Paths(alone.folder).verification)
    assert [record["row"] for record in verification["records"]] == [0, 1, 4]
    assert (verification["sequences"], alone.results.manifest["verified"]) == (3, 3)
    accuracy = read_json(alone.folder / "packedesm_accuracy_mqc.json")["data"]["out"]
    assert accuracy["compared"] == 3
    html = (alone.folder / "report.html").read_text()
    page = " ".join(re.sub("<[^>]*>", " ", html).split())
    assert "3 proteins were computed again" in page
    (said,) = verification["not_compared"]
    assert said.startswith("pseudo_perplexity of 2 proteins (rows 2, 3) not compared")
    assert page.count(said) == 2
    assert "which gave: the pseudo-perplexity of each protein" in page
    assert "masked passes per second one for each residue" in page
    for untrue in ("turned into vectors", "of residues were asked for", "unknown proteins per"):
        assert untrue not in page
    for untrue in ("unknown full", "the two vectors", "unknown of padded", "these vectors"):
        assert untrue not in page


def test_shards_are_cut_by_what_masked_passes_cost(fasta, tmp_path, checkpoints):
    several = Run(fasta, tmp_path / "out", checkpoints, OUTPUTS, "--shards", "2")
    runs = several.metrics["throughput"]["shards"]
    assert [row["records"] for row in runs] == [2, 2]
    assert sum(row["masked_passes"] for row in runs) == 30
    assert np.isfinite(several.results.array("masked_marginals")).all()


# Jobs in processes of their own.


@pytest.fixture
def sample(tmp_path, fasta):
    verify = {"sequences": 0}
    return Sample(
        tmp_path / "sample", fasta, outputs=OUTPUTS, token_budget=24, verify=verify, commit_packs=2
    )


def digests(sample) -> dict[str, str]:
    merge_shards(sample.paths, 1, OUTPUTS)
    return {path.name: file_digest(path) for path in sample.paths.arrays(OUTPUTS)}


def test_a_job_that_is_killed_again_and_again_gives_the_same_bits(sample):
    log = sample.run(name="quiet")
    expected = digests(sample)
    packs = read_json(sample.paths.shard_run(0))["packs"]
    assert packs > 25
    sample.paths.shard_run(0).unlink()
    for kill in range(5):
        process = sample.start(f"kill{kill}", faults={"slow": 0.01})
        sample.wait_for_packs(process, kill + 1, packs // 6)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    log = sample.run(name="last")
    assert re.search(r"what is left: .* are \d+ passes, one for each residue", log)
    run = read_json(sample.paths.shard_run(0))
    assert run["restarts"] == 5
    assert digests(sample) == expected


def test_a_job_whose_memory_is_short_splits_packs_of_both_kinds(sample):
    # In int8 the proteins that its products are tried with would not fit either.
    sample.run(name="quiet", dtype="auto")
    merge_shards(sample.paths, 1, OUTPUTS)
    expected = {name: np.load(sample.paths.array(name)) for name in OUTPUTS}
    sample.paths.shard_run(0).unlink()
    sample.run(name="short", faults={"memory": 23}, token_budget=48, dtype="auto")
    packs = read_packs(sample.paths.shard_packs(0))
    assert packs["tokens"].max() <= 23
    assert set(packs["masked"].tolist()) == {0, 1}
    merge_shards(sample.paths, 1, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(np.load(sample.paths.array(name)), expected[name], rtol=2e-5)


def test_a_job_of_masked_passes_alone_checks_itself_before_the_first(tmp_path, fasta, capsys):
    """By the logits of a few proteins: what masked passes come from, without the many of them."""
    sample = Sample(tmp_path / "sample", fasta, outputs=["masked_marginals"], token_budget=64)
    log = sample.run(name="right")
    found = re.search(r"first check: [1-9] vectors of [1-9] proteins .*: logits of ", log)
    assert found.start() < log.index("embedding: ")
    assert set(read_record(sample.paths.shard_run(0))["arrays_sha256"]) == {"masked_marginals"}
    model = ["--model", TINY, "--checkpoints", str(tmp_path)]
    asked = [str(fasta), "-o", str(tmp_path / "out"), "--outputs", "masked_marginals", *model]
    with computing_wrong():
        assert main(["embed", *asked]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("packedesm:")]
    assert "the first check fails: logits of" in line


def test_what_a_shard_passes_is_known_from_its_summary(sample):
    sample.run()
    (shard,) = read_json(sample.paths.sharding)["shards"]
    packs = read_packs(sample.paths.shard_packs(0))
    masked = packs["masked"] > 0
    of_copies = (packs["tokens"] - 2 * packs["records"])[masked].sum()
    assert of_copies == sum(n * n for n in (10, 3, 20, 5))
    assert packs["residues"][~masked].sum() == 38
    assert _passed(shard) == of_copies + 38
    assert _passed(shard, unmasked=False) == of_copies


def test_the_options_of_shards_say_whether_records_are_masked():
    assert not options(ShardOptions).masked
    assert options(ShardOptions, outputs=["mean", "pseudo_perplexity"]).masked
    part = ShardOptions.part(resolve({"fasta": "in.fasta", "outputs": ["masked_marginals"]}))
    assert ShardOptions.of(part).masked
