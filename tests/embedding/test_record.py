"""What jobs record of themselves is read as it was written, or refused by name."""

import pytest

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.esm2.registry import Checkpoint
from packedesm.files import RECORD_DIGEST, read_record, write_record
from tests.typed import checkpoint, shard_run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = shard_run(
        arrays=("mean", "residue"),
        float32_rows=(3, 5),
        arrays_sha256={"mean": "0" * 64},
        retried_packs=5,
    )
    run.write(tmp_path / "run.json")
    assert ShardRun.read(tmp_path / "run.json") == run


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    made = checkpoint(bytes=7, demo=True)
    made.write(tmp_path / "checkpoint.json")
    assert Checkpoint.read(tmp_path / "checkpoint.json") == made


@pytest.mark.parametrize("kind", [ShardRun, Checkpoint])
@pytest.mark.parametrize("damage", ["empty", "cut", "list", "lacks a value"])
def test_what_is_no_record_is_refused_by_name(tmp_path, kind, damage):
    path = tmp_path / "record.json"
    (shard_run() if kind is ShardRun else checkpoint()).write(path)
    text, content = path.read_text(), read_record(path)
    if damage == "lacks a value":
        del content["checkpoint" if kind is ShardRun else "sha256"], content[RECORD_DIGEST]
        write_record(path, content)
    else:
        path.write_text({"empty": "", "cut": text[: len(text) // 2], "list": "[]"}[damage])
    said = "is not the record of" if damage == "lacks a value" else "is not as it was written"
    with pytest.raises(Fault, match=f"{path}: {said}.*delete it and run again"):
        kind.read(path)
