import subprocess
import sys

import pytest

import packedesm
from packedesm.files import write_json
from packedesm.paths import Paths


def test_a_folder_without_a_manifest_is_no_finished_run(tmp_path):
    with pytest.raises(packedesm.UserError, match="not the results of a finished run"):
        packedesm.open(tmp_path)


def test_an_output_that_was_not_made_is_named(tmp_path):
    write_json(Paths(tmp_path).manifest, {"records": 1, "arrays": {"mean.npy": {}}})
    with pytest.raises(packedesm.UserError, match=r"has no residue\.npy; it holds mean\.npy"):
        packedesm.open(tmp_path).residues(0)


def test_a_job_imports_torch_and_not_pandas_and_the_package_neither():
    code = "import sys, {}; print([name for name in ('pandas', 'torch') if name in sys.modules])"
    for module, loaded in (("packedesm", []), ("packedesm.embedding.job", ["torch"])):
        command = [sys.executable, "-c", code.format(module)]
        assert subprocess.check_output(command, text=True).strip() == str(loaded)
