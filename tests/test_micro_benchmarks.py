import json
import math
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.benchmarks, pytest.mark.cpu]

SPREAD = {"seconds", "min_seconds", "max_seconds", "cpu_seconds"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What a quick run writes, as its user would start it."""
    out = tmp_path_factory.mktemp("micro") / "micro.json"
    command = [sys.executable, "-m", "benchmarks.micro", "--quick", "--repeats", "2", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def figures(content):
    """Every number below `content`."""
    if isinstance(content, dict):
        content = content.values()
    if isinstance(content, int | float):
        return [content]
    return [figure for part in content if not isinstance(part, str) for figure in figures(part)]


def test_every_figure_is_there_and_positive(result):
    assert [(row["head_dim"], row["dtype"]) for row in result["attention"]] == [
        (head_dim, dtype) for head_dim in (16, 24, 32, 64) for dtype in ("float32", "bfloat16")
    ]
    for row in result["attention"]:
        assert row["packedesm"].keys() == row["sdpa"].keys() > SPREAD
        assert row["sdpa_over_packedesm"] > 0
    assert [row["dtype"] for row in result["outputs"]] == ["float32", "bfloat16"]
    for row in result["outputs"]:
        assert row["three_layers_and_logits"].keys() == row["contacts"].keys() == SPREAD
        assert row["mean_over_mean"] == 1
    for row in result["packer"]:
        assert row["packedesm"].keys() == row["next_fit"].keys() == SPREAD
    assert result["packer"][0]["textbook"].keys() == SPREAD
    assert result["packer"][0]["textbook_over_packedesm"] > 0
    for name in ("packedesm", "fair_esm"):
        assert result["tokeniser"][name].keys() > SPREAD | {"residues_per_second"}
    assert len(result["sharding"]) == 2
    for row in result["sharding"]:
        rates = {"megabytes_per_second", "megabytes_per_cpu_second", "memory_peak_bytes"}
        assert row["sharding"].keys() > SPREAD | rates
    assert result["collation"]["collation"].keys() > SPREAD | {"tokens_per_second"}
    for name in ("store", "plain_write", "merge", "plain_copy"):
        assert result["store"][name].keys() > SPREAD
        assert "megabytes_per_second" in result["store"][name]
    measured = figures([part for name, part in result.items() if name != "conditions"])
    assert all(math.isfinite(figure) and figure > 0 for figure in measured)


def test_the_textbook_packs_as_we_do(result):
    fill = result["packer"][0]["fill"]
    assert fill["textbook"] == pytest.approx(fill["packedesm"])
    assert fill["next_fit"] < fill["packedesm"] <= 1


def test_the_conditions_are_told(result):
    told = result["conditions"]
    assert told["device"]["name"]
    assert told["repeats"] == 2
    assert told["fasta"] == "uniprot_500.fasta.gz"
    assert told["versions"]["torch"]
