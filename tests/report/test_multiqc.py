from packedesm.files import file_digest, read_json, read_record
from packedesm.paths import Paths
from tests.report.finished_run import record, report

SAMPLE = "β-lactamases (E. coli) v1.2 #3 & co"
MISSED = [record(), record(1, relative_l2=None, cosine=None, passed=False)]


def written(root, **run) -> dict[str, dict]:
    report(root / SAMPLE, **run)
    return {path.name: read_json(path) for path in Paths(root / SAMPLE).multiqc()}


def test_each_file_tells_of_the_sample_by_its_name(tmp_path):
    files = written(tmp_path, records=[record()], shards=2)
    assert {content["plot_type"] for content in files.values()} == {
        "generalstats",
        "bargraph",
        "table",
    }
    assert all([*content["data"]] == [SAMPLE] for content in files.values())
    assert len({content["id"] for content in files.values()}) == len(files)
    for content in files.values():
        columns = content.get("headers") or content["categories"]
        assert content["data"][SAMPLE].keys() <= columns.keys()


def test_numbers_are_those_of_the_metrics(tmp_path):
    files = written(tmp_path, records=[record()])
    metrics = read_record(Paths(tmp_path / SAMPLE).metrics)
    packing, speed = metrics["packing"]["all"], metrics["throughput"]["all"]
    statistics = files["packedesm_mqc.json"]["data"][SAMPLE]
    assert statistics == {
        "proteins": 4,
        "residues_per_second": speed["residues_per_second"],
        "fill": 100 * packing["fill"],
        "padding_avoided": 100 * packing["padding_avoided_arrival"],
        "verified": "yes",
        "relative_l2": 2e-7,
    }
    bars = files["packedesm_packing_mqc.json"]["data"][SAMPLE]
    assert sum(bars.values()) == packing["padded_tokens_arrival"]
    times = files["packedesm_time_mqc.json"]["data"][SAMPLE]
    assert times["embedding"] == speed["seconds"]
    assert files["packedesm_accuracy_mqc.json"]["data"][SAMPLE]["compared"] == 1


def test_what_failed_and_what_was_not_verified_is_told(tmp_path):
    failed = written(tmp_path / "failed", records=MISSED, passed=False)
    assert failed["packedesm_mqc.json"]["data"][SAMPLE]["verified"] == "NO"
    assert failed["packedesm_accuracy_mqc.json"]["data"][SAMPLE]["missed"] == 1
    unknown = written(tmp_path / "off")["packedesm_mqc.json"]["data"][SAMPLE]
    assert unknown["verified"] == "not verified"
    assert "relative_l2" not in unknown


def test_digests_of_all_are_recorded(tmp_path):
    written(tmp_path)
    paths = Paths(tmp_path / SAMPLE)
    digests = read_record(paths.reporting)["sha256"]
    assert digests == {path.name: file_digest(path) for path in [paths.report, *paths.multiqc()]}
    assert set(paths.multiqc()) < set(paths.results())
