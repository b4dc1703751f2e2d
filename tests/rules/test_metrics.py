import pandas as pd
import pytest

from packedesm.files import read_json


def test_packing_and_throughput_add_up(run_rule):
    names = ("metrics.json", "packing.tsv", "throughput.tsv")
    paths = run_rule("metrics", *(f"results/sixty/{name}" for name in names))
    packing = pd.read_csv(paths.packing, sep="\t", dtype={"shard": str}).set_index("shard")
    throughput = pd.read_csv(paths.throughput, sep="\t", dtype={"shard": str}).set_index("shard")
    runs = [read_json(paths.shard_run(k)) for k in (0, 1)]
    assert packing.loc["all", "tokens"] == sum(run["tokens"] for run in runs)
    assert (packing["fill"] <= 1).all()
    assert (packing["padded_tokens_sorted"] >= packing["tokens"]).all()
    assert (packing["padded_tokens_arrival"] >= packing["padded_tokens_sorted"]).all()
    for shard, run in enumerate(runs):
        rate = run["tokens"] / run["seconds"]["embedding"]
        assert throughput.loc[str(shard), "tokens_per_second"] == pytest.approx(rate, rel=1e-3)
    assert isinstance(read_json(paths.metrics), dict)
