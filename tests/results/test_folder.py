"""Whose a folder of the workflow's results is, by what lies in it."""

import fcntl

import pytest

from packedesm.errors import UserError
from packedesm.files import TEMPORARY, write_record
from packedesm.paths import Paths
from packedesm.results.folder import refuse_foreign_sample


@pytest.fixture
def paths(tmp_path) -> Paths:
    """A folder as a run of the workflow leaves it that was stopped."""
    paths = Paths(tmp_path / "sample")
    (paths.work / "shards").mkdir(parents=True)
    paths.sharding.write_text("{}")
    (paths.root / f"{TEMPORARY}x.npy").touch()
    (paths.work / f"{TEMPORARY}y").touch()
    return paths


def test_the_workflows_own_folder_is_its_own(paths):
    refuse_foreign_sample(paths)
    paths.array("mean").touch()
    refuse_foreign_sample(paths)


@pytest.mark.parametrize("name", ["thesis.txt", ".work/notes", ".tmp-notes"])
def test_what_is_not_of_a_run_is_named(paths, name):
    (paths.root / name).touch()
    with pytest.raises(UserError, match=f"'{name}'"):
        refuse_foreign_sample(paths)


def test_an_unfinished_run_of_the_command_is_left_alone(paths):
    paths.request.write_text("{}")
    with pytest.raises(UserError, match="packedesm embed"):
        refuse_foreign_sample(paths)


def test_finished_results_of_the_command_are_left_alone(paths):
    write_record(paths.manifest, {"request": {}})
    with pytest.raises(UserError, match="packedesm embed"):
        refuse_foreign_sample(paths)


def test_a_folder_that_the_command_has_just_claimed_is_left_alone(paths):
    with paths.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="packedesm embed"):
            refuse_foreign_sample(paths)
    refuse_foreign_sample(paths)
