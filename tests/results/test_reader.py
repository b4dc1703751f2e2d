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
