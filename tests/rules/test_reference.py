import numpy as np
import pytest

from packedesm.files import read_json
from packedesm.paths import Paths
from packedesm.reference.vectors import FIRST, REST


@pytest.mark.parametrize("part", [FIRST, REST])
def test_sampled_records_are_embedded_with_fair_esm(run_rule, finished, part):
    folder = "results/sixty/.work/reference"
    paths = run_rule("reference", f"{folder}/{part}.json", f"{folder}/{part}.npy")
    before = Paths(finished / "results" / "sixty")
    np.testing.assert_array_equal(
        np.load(paths.reference_numbers(part)), np.load(before.reference_numbers(part))
    )
    proteins = {name: read_json(before.reference(name))["proteins"] for name in (FIRST, REST)}
    assert read_json(paths.reference(part))["proteins"] == proteins[part]
    # A record of 1,934 residues is cut at 1,022, so all four sampled ones are quick.
    assert [len(found) for found in proteins.values()] == [4, 0]
