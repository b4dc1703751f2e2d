"""The key `device`: what it refuses, and that a change of it throws nothing away."""

from dataclasses import replace
from pathlib import Path

import pytest

from packedesm import pipeline
from packedesm.cli import main
from packedesm.embedding.output import expect_same_numbers
from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.options import EmbedOptions
from packedesm.paths import Paths
from tests.commands import Command, state_of, the_line
from tests.fake_cuda.nvml import Machine, MadeUpGpu
from tests.typed import options, shard_run


@pytest.fixture
def command(tmp_path, eight, checkpoints):
    """Return a function that makes a command for the folder ``out``."""
    return lambda **flags: Command(eight, tmp_path / "out", checkpoints, **flags)


def test_a_gpu_that_is_not_there_is_one_line_and_the_cpu_goes_on(command, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(command(device="cuda").arguments) == 2
    line = the_line(capsys.readouterr().err)
    assert line.startswith("packedesm: device is cuda: CUDA_VISIBLE_DEVICES hides every GPU; ")
    run = command(device="cpu")
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    for device in ("auto", "cuda"):
        assert main(command(device=device).arguments) == 0
        assert "nothing to be done" in capsys.readouterr().out
    assert state_of(run.out.root) == before


def test_a_gpu_that_cannot_be_used_is_one_line_and_the_cpu_goes_on(command, monkeypatch, capsys):
    """Not hours on the CPU because of a driver."""
    Machine([MadeUpGpu("a")], torch_cuda=None).install(monkeypatch)
    assert main(command().arguments) == 1
    line = the_line(capsys.readouterr().err)
    assert "this torch cannot use a GPU" in line
    assert line.endswith("or say device: cpu to compute without a GPU")
    assert main(command(device="cpu").arguments) == 0


def computed_on_a_gpu(paths: Paths) -> None:
    """Let the record of shard 0 be that of a job on a GPU."""
    run = ShardRun.read(paths.shard_run(0))
    on_gpu = {"kind": "cuda", "name": "NVIDIA T4", "uuid": "GPU-1", "memory_bytes": 1, "threads": 1}
    plan = replace(run.plan, dtype="float16", output_dtype="float16")
    replace(run, device=on_gpu, plan=plan).write(paths.shard_run(0))


def test_shards_that_could_not_be_merged_are_not_computed(command, monkeypatch, capsys):
    run = command(shards=2, device="cpu")
    embed_shard = pipeline.embed_shard

    def stop_at_the_second(paths, shard, *arguments, **more):
        if shard == 1:
            raise Fault("stopped")
        embed_shard(paths, shard, *arguments, **more)

    monkeypatch.setattr(pipeline, "embed_shard", stop_at_the_second)
    assert main(run.arguments) == 1
    computed_on_a_gpu(run.out)
    before = state_of(run.out.work / "embeddings")
    capsys.readouterr()
    assert main(run.arguments) == 1
    assert "shard 0 was embedded in float16 on NVIDIA T4" in the_line(capsys.readouterr().err)
    assert before
    assert state_of(run.out.work / "embeddings") == before


@pytest.mark.parametrize(
    ("dtype", "kind", "fit"),
    [
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        ("float16", "cpu", True),
    ],
)
def test_shards_of_two_devices_fit_where_their_dtype_was_named(tmp_path: Path, dtype, kind, fit):
    paths = Paths(tmp_path)
    shard_run().write(paths.shard_run(0))
    computed_on_a_gpu(paths)
    kept = [ShardRun.read(paths.shard_run(0)), None]
    asked = options(EmbedOptions, dtype=dtype)
    if fit:
        expect_same_numbers(paths, kept, asked, kind)
        return
    with pytest.raises(Fault, match="go on on such a device, or start over with --force"):
        expect_same_numbers(paths, kept, asked, kind)
