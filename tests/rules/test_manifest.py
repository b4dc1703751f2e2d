import numpy as np

import packedesm
from packedesm.files import read_json, write_record
from packedesm.paths import Paths
from tests.rules.conftest import RECORDS
from tests.workflow import snakemake

MANIFEST = "results/sixty/manifest.json"


def test_the_manifest_opens_the_results(run_rule):
    paths = run_rule("manifest", MANIFEST)
    results = packedesm.open(paths.root)
    assert len(results) == len(results.ids) == RECORDS
    written = {"shape": [RECORDS, 64], "dtype": "float32"}
    meant = {"output": "mean", "layer": 3, "columns": None}
    assert results.manifest["arrays"]["mean.npy"] == written | meant
    for row in (0, 37, RECORDS - 1):
        record_id = results.ids[row]
        np.testing.assert_array_equal(results.vector(record_id), results.array()[row])
        assert results.residues(row).shape == (results.index["embedded_length"][row], 64)


def test_a_failed_verification_leaves_no_manifest_and_says_why(with_inputs):
    folder = with_inputs(MANIFEST)
    paths = Paths(folder / "results" / "sixty")
    verification = read_json(paths.verification)
    verification["passed"] = verification["records"][0]["passed"] = False
    write_record(paths.verification, verification)
    run = snakemake(folder, MANIFEST, "--allowed-rules", "manifest", "--force")
    assert run.returncode != 0
    line = next(line for line in run.stdout.splitlines() if "verification failed" in line)
    assert "1 of 8 comparisons" in line
    assert not paths.manifest.exists()
