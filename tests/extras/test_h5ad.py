"""The export for AnnData, as anndata itself opens it.

By make test-extras, which installs it beside the environment: anndata 0.12 wants an older pandas.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import packedesm
from packedesm.files import read_record
from tests.results.exported import RECORDS, add_array, embedded, export
from tests.workflow import ROOT

SWITCH = "PACKEDESM_TEST_EXTRAS"  # the folder that make test-extras installs in
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(SWITCH not in os.environ, reason="by make test-extras"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoints) -> Path:
    """Results with a further layer in float16, and one number for each record."""
    folder = tmp_path_factory.mktemp("readers")
    embedded(folder, checkpoints)
    changed = folder / "out"
    mean = packedesm.open(changed).array("mean")
    add_array(changed, "mean.layer1", (2 * mean).astype(np.float16))
    add_array(changed, "pseudo_perplexity", np.linspace(1, 9, len(mean), dtype=np.float32))
    return changed


@pytest.fixture(scope="module")
def seen(results, tmp_path_factory):
    """What anndata sees of the export: texts and numbers."""
    assert export(results, "--format", "h5ad") == 0
    out = tmp_path_factory.mktemp("seen") / "seen"
    packages = Path(os.environ[SWITCH]) / "anndata"
    assert packages.is_dir(), f"{packages} is missing: make test-extras installs it"
    path = results / "exports" / "proteins.h5ad"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("read_h5ad.py")), str(path), str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(f"{out}.npz") as arrays:
        return json.loads(Path(f"{out}.json").read_text()), dict(arrays)


def test_anndata_reads_the_vectors_in_float32(results, seen):
    _, arrays = seen
    opened = packedesm.open(results)
    assert arrays["X"].dtype == arrays["obsm mean.layer1"].dtype == np.float32
    np.testing.assert_array_equal(arrays["X"], opened.array())
    np.testing.assert_array_equal(arrays["mapped"], opened.array()[1:4])
    np.testing.assert_array_equal(arrays["obsm cls"], opened.array("cls"))
    np.testing.assert_array_equal(
        arrays["obsm mean.layer1"], opened.array("mean.layer1").astype(np.float32)
    )


def test_anndata_reads_the_index_with_each_name_once(results, seen):
    told, _ = seen
    index = packedesm.open(results).index
    names = [name for name, _, _ in RECORDS]
    assert told["obs_names"] == [*names[:7], "twice~2", *names[8:]]
    assert told["obs"]["id"] == names
    assert told["columns"]["duplicate_of"] == "Int64"
    assert told["obs"]["duplicate_of"] == [6 if row == 7 else None for row in range(len(names))]
    for column in ("description", "sha256", "flags"):
        assert told["obs"][column] == index[column].tolist()
    assert told["obs"]["embedded_length"] == index["embedded_length"].tolist()
    assert told["obs"]["pseudo_perplexity"] == pytest.approx(np.linspace(1, 9, len(names)))
    assert told["var_names"] == [str(number) for number in range(64)]
    assert told["warnings"] == []


def test_anndata_reads_the_manifest(results, seen):
    told, _ = seen
    manifest = read_record(results / "manifest.json")
    assert json.loads(told["manifest"]) == manifest
    assert told["model"] == {k: v for k, v in manifest["model"].items() if v is not None}
    assert told["outputs"] == ["cls", "mean", "residue"]
