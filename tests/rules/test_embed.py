import numpy as np
import pandas as pd

from packedesm.files import read_json
from packedesm.paths import Paths

FOLDER = "results/sixty/.work/embeddings/1"


def test_one_shard_is_embedded(run_rule, finished):
    paths = run_rule("embed", *(f"{FOLDER}/{n}" for n in ("mean.npy", "packs.tsv", "run.json")))
    before = Paths(finished / "results" / "sixty")
    np.testing.assert_array_equal(
        np.load(paths.shard_array(1, "mean")), np.load(before.shard_array(1, "mean"))
    )
    run, packs = read_json(paths.shard_run(1)), pd.read_csv(paths.shard_packs(1), sep="\t")
    shard = read_json(paths.sharding)["shards"][1]
    assert run["shard"] == 1
    assert (run["records"], run["tokens"]) == (shard["records"], shard["tokens"])
    assert packs["records"].sum() == shard["records"]
    assert packs["tokens"].max() <= run["plan"]["token_budget"]
    assert run["gpu"]["available"] == (run["device"]["kind"] == "cuda")
    assert run["gpu"]["available"] or run["gpu"]["reason"]
    assert "residues/s" in (paths.root.parent / ".logs/sixty/embed.1.log").read_text()
