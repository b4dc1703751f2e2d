"""Steps that were given something else, by their records: what Snakemake alone may not know."""

from dataclasses import replace

import pytest

from packedesm.config import resolve, with_arrays
from packedesm.files import combined, file_digest, write_record
from packedesm.options import EmbedOptions, ReportOptions, ShardOptions, VerifyOptions
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD
from packedesm.paths import Paths
from packedesm.results.inputs import MISSING
from packedesm.results.outdated import (
    gone_results,
    kept_number,
    outdated_checkpoint,
    outdated_steps,
)
from tests.typed import checkpoint, shard_run


def asked(**config) -> dict:
    return with_arrays(resolve({"fasta": "a.fasta", **config}), depth=6)


CONFIG = asked()
INPUTS = ["12 " + "a" * 64, "7 " + "b" * 64]


@pytest.fixture
def run(tmp_path) -> Paths:
    """A run of one sample in two shards, as far as its records go."""
    run, paths = Paths(tmp_path), Paths(tmp_path / "sample")
    weights = checkpoint()
    weights.write(run.checkpoint)
    inputs = [{"sha256": line.split()[1]} for line in INPUTS]
    options = ShardOptions.part(CONFIG)
    write_record(paths.sharding, {"inputs": inputs, **options, "shards": [{}, {}]})
    for shard in (0, 1):
        job = shard_run(shard=shard, checkpoint=weights)
        replace(job, options=EmbedOptions.of(CONFIG)).write(paths.shard_run(shard))
    write_record(paths.verification, {"options": VerifyOptions.part(CONFIG)})
    reporting = {"options": ReportOptions.part(CONFIG), "table": "e" * 64}
    for record, content, files in (
        (paths.metrics, {}, [paths.packing, paths.throughput]),
        (paths.reporting, reporting, paths.drawn()),
    ):
        for path in files:
            path.write_text(path.name)
        digests = {path.name: file_digest(path) for path in files}
        write_record(record, content | {"sha256": digests})
    return run


def outdated(run: Paths, config=CONFIG, inputs=INPUTS, shards=2) -> set[str]:
    paths = Paths(run.root / "sample")
    found = outdated_steps(run, paths, config, inputs, shards)
    inside = (paths.work if path.is_relative_to(paths.work) else paths.root for path in found)
    return {path.relative_to(folder).as_posix() for path, folder in zip(found, inside, strict=True)}


def test_what_is_asked_for_again_is_not_outdated(run):
    assert outdated(run) == set()
    assert outdated_checkpoint(run, checkpoint().model, []) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"verify": {"sequences": 5}}, {"verification.json"}),
        ({"dtype": "bfloat16"}, {"embeddings/0/run.json", "embeddings/1/run.json"}),
        ({"deduplicate": False}, {"sharding.json"}),
        ({"ids": "header"}, {"sharding.json"}),
        ({"report": {"column": "family"}}, {"reporting.json"}),
        ({"workers": 1}, set()),
    ],
)
def test_other_options_outdate_the_steps_that_read_them(run, config, expected):
    assert outdated(run, asked(**config)) == expected


@pytest.mark.parametrize("inputs", [INPUTS[::-1], INPUTS[:1], ["12 " + "c" * 64, INPUTS[1]]])
def test_another_input_outdates_the_shards(run, inputs):
    assert outdated(run, inputs=inputs) == {"sharding.json"}


def test_files_that_are_there_no_more_outdate_nothing(run):
    """Inputs that a rule makes may be removed after their use."""
    assert outdated(run, inputs=[MISSING, INPUTS[1]]) == set()
    assert outdated(run, inputs=[MISSING]) == {"sharding.json"}
    assert outdated(run, inputs=[MISSING] * 3) == {"sharding.json"}
    assert outdated_checkpoint(run, checkpoint().model, [MISSING, INPUTS[1]]) == []


@pytest.mark.parametrize(
    ("table", "expected"),
    [("3 " + "e" * 64, []), ("4 " + "e" * 64, []), ("3 " + "f" * 64, [True]), (MISSING, [])],
)
def test_a_table_of_other_content_outdates_the_report_alone(run, table, expected):
    paths = Paths(run.root / "sample")
    found = outdated_steps(run, paths, CONFIG, INPUTS, 2, table)
    assert found == [paths.reporting for _ in expected]


def test_another_number_of_shards_outdates_them(run):
    assert outdated(run, shards=1) == {"sharding.json"}


def test_other_weights_outdate_the_checkpoint_and_what_was_made_with_it(run):
    model = checkpoint().model
    assert outdated_checkpoint(run, "another", []) == [run.checkpoint]
    assert outdated_checkpoint(run, model, ["3 " + "d" * 64]) == [run.checkpoint]
    files = ["3 " + "d" * 64, "4 " + "e" * 64]
    replace(checkpoint(), sha256=combined([line[2:] for line in files])).write(run.checkpoint)
    assert outdated_checkpoint(run, model, files) == []
    assert outdated(run) == {"embeddings/0/run.json", "embeddings/1/run.json"}


def test_records_that_are_damaged_or_gone_are_left_to_their_readers(run):
    paths = Paths(run.root / "sample")
    for path in (run.checkpoint, paths.sharding, paths.shard_run(0), paths.verification):
        path.write_text("{")
    paths.shard_run(1).unlink()
    assert outdated(run) == set()
    assert outdated_checkpoint(run, "another", []) == []


def test_the_number_of_shards_stands_as_long_as_they_do(run):
    paths = Paths(run.root / "sample")
    assert kept_number(paths, CONFIG, INPUTS) == 2
    assert kept_number(paths, CONFIG, ["12 other"]) is None
    assert kept_number(paths, resolve({"fasta": "a.fasta", "max_length": 5}), INPUTS) is None
    assert kept_number(Paths(run.root / "none"), CONFIG, INPUTS) is None


def test_a_named_models_record_tells_whether_its_regression_was_read(run):
    model, needs = checkpoint().model, {CONTACT_HEAD}
    assert outdated_checkpoint(run, model, [], {LANGUAGE_HEAD}) == []
    assert outdated_checkpoint(run, model, [], needs) == [run.checkpoint]
    checkpoint(regression="/checkpoints/x-contact-regression.pt").write(run.checkpoint)
    assert outdated_checkpoint(run, model, [], needs) == []
    assert outdated_checkpoint(run, model, []) == [run.checkpoint]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("report.html", "reporting.json"),
        ("packedesm_time_mqc.json", "reporting.json"),
        ("packing.tsv", "metrics.json"),
        ("throughput.tsv", "metrics.json"),
    ],
)
def test_a_small_file_that_was_changed_or_is_gone_is_written_again(run, name, step):
    path = Paths(run.root / "sample").root / name
    content = path.read_text()
    path.write_text(content.upper())
    assert outdated(run) == {step}
    path.unlink()
    assert outdated(run) == {step}
    path.write_text(content)
    assert outdated(run) == set()


def test_any_file_of_finished_results_that_is_gone_is_written_again(tmp_path):
    paths, config = Paths(tmp_path), asked(outputs=["mean", "residue"], layers=[-1, 0])
    for path in paths.arrays(config["arrays"]):
        path.touch()
    expected = {path for path in paths.results() if path.suffix != ".npy"} - {paths.manifest}
    assert gone_results(paths, config) == []  # they are not finished
    paths.manifest.touch()
    assert set(gone_results(paths, config)) == expected
    for path in expected:
        path.touch()
    assert gone_results(paths, config) == []
    gone = [paths.array("mean.layer0"), paths.residue_offsets]
    for path in gone:
        path.unlink()
    assert gone_results(paths, config) == gone
