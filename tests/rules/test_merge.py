import numpy as np
import pandas as pd

from tests.rules.conftest import RECORDS


def test_shards_are_joined_in_input_order_with_duplicates_filled_in(run_rule):
    sample = "results/sixty"
    names = ("mean.npy", "residue.npy", "residue_offsets.npy", "index.parquet", "skipped.tsv")
    paths = run_rule("merge", *(f"{sample}/{name}" for name in names))
    index = pd.read_parquet(paths.index)
    mean = np.load(paths.array("mean"))
    assert len(mean) == len(index) == RECORDS

    unique = index["duplicate_of"].isna()
    parts = np.concatenate([np.load(paths.shard_array(k, "mean")) for k in (0, 1)])
    np.testing.assert_array_equal(mean[unique], parts)
    copies = index[~unique]
    assert len(copies) > 0
    np.testing.assert_array_equal(mean[copies["row"]], mean[copies["duplicate_of"].astype(int)])

    offsets = np.load(paths.residue_offsets)
    np.testing.assert_array_equal(np.diff(offsets), index["embedded_length"])
    residue = np.load(paths.array("residue"))
    for row in (0, 30, RECORDS - 1):
        part = residue[offsets[row] : offsets[row + 1]]
        np.testing.assert_allclose(part.mean(axis=0), mean[row], rtol=1e-5, atol=1e-6)
