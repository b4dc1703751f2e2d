"""A command with several processes: which devices, how many shards, and never other results."""

import pytest

from packedesm import pipeline
from packedesm.cli import main
from packedesm.errors import Fault
from packedesm.files import read_record
from tests.commands import Command, bits, state_of, the_line


@pytest.fixture
def command(tmp_path, eight, checkpoints):
    """Return a function that makes a command for the folder ``out``."""
    return lambda **flags: Command(eight, tmp_path / "out", checkpoints, **flags)


@pytest.fixture
def begun(command, monkeypatch):
    """A command for three processes that was stopped after its first shard."""
    run = command(devices="cpu,cpu,cpu")

    def stop_after_one(embed, shards, _places, **_more):
        embed(shards[0])
        raise Fault("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "embed_shards", stop_after_one)
        assert main(run.arguments) == 1
    return run


def shards_of(run: Command) -> int:
    return len(read_record(run.out.sharding)["shards"])


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_auto_stays_what_it_was_begun_with_whatever_devices_there_are(
    begun, command, monkeypatch, quiet, devices, caplog, forked_pools
):
    caplog.set_level("INFO")
    assert shards_of(begun) == 3
    (kept,) = begun.out.work.glob("embeddings/*")
    merge, merged = pipeline.merge_shards, []

    def noted_merge(paths, shards, outputs):
        merged.append(shards)
        merge(paths, shards, outputs)

    monkeypatch.setattr(pipeline, "merge_shards", noted_merge)
    assert main(command(devices=devices).arguments) == 0
    assert merged == [3]
    assert f"shard {kept.name} is finished and kept" in caplog.messages
    assert bits(begun.out) == quiet


def test_devices_are_not_part_of_the_request(command, quiet, capsys):
    run = command()
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    assert main(command(devices="cpu,cpu").arguments) == 0
    assert "nothing to be done" in capsys.readouterr().out
    assert state_of(run.out.root) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"devices": "7"}, "--devices '7': names no GPU; "),
        ({"devices": "cpu", "device": "cuda"}, "--devices cpu: device is cuda; "),
    ],
)
def test_devices_that_cannot_be_are_one_line_and_nothing_is_made(command, flags, words, capsys):
    run = command(**flags)
    assert main(run.arguments) == 2
    assert the_line(capsys.readouterr().err).startswith(f"packedesm: {words}")
    assert not run.out.root.exists()
