import pytest

import packedesm
from packedesm.errors import Damaged
from packedesm.files import write_json, write_record
from packedesm.paths import Paths


def test_a_folder_without_a_manifest_is_no_finished_run(tmp_path):
    with pytest.raises(packedesm.UserError, match="not the results of a finished run"):
        packedesm.open(tmp_path)


def test_a_manifest_that_is_not_as_it_was_written_is_refused(tmp_path):
    path = Paths(tmp_path).manifest
    write_record(path, {"format": 2, "records": 8, "request": {"format": 1}})
    path.write_text(path.read_text().replace('"records": 8', '"records": 9'))
    with pytest.raises(Damaged):
        packedesm.open(tmp_path)


@pytest.mark.parametrize(("write", "version"), [(write_json, 1), (write_record, 2)])
def test_an_output_that_was_not_made_is_named(tmp_path, write, version):
    content = {"format": version, "records": 1, "arrays": {"mean.npy": {}}}
    write(Paths(tmp_path).manifest, content)
    with pytest.raises(packedesm.UserError, match=r"has no residue\.npy; it holds mean\.npy"):
        packedesm.open(tmp_path).residues(0)
