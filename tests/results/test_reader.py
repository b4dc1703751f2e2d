import pytest

import packedesm
from packedesm.files import write_json, write_record
from packedesm.paths import Paths


def test_a_folder_without_a_manifest_is_no_finished_run(tmp_path):
    with pytest.raises(packedesm.UserError, match="not the results of a finished run"):
        packedesm.open(tmp_path)


@pytest.mark.parametrize(("write", "version"), [(write_json, 1), (write_record, 2)])
def test_an_output_that_was_not_made_is_named(tmp_path, write, version):
    content = {"format": version, "records": 1, "arrays": {"mean.npy": {}}}
    write(Paths(tmp_path).manifest, content)
    with pytest.raises(packedesm.UserError, match=r"has no residue\.npy; it holds mean\.npy"):
        packedesm.open(tmp_path).residues(0)
