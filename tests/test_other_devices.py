"""An attempt on another device goes on with what is finished, or leaves it as it is and says so."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from packedesm import pipeline
from packedesm.config import resolve
from packedesm.device.hardware import Device
from packedesm.embedding import job
from packedesm.embedding.job import embed_shard
from packedesm.errors import Fault
from packedesm.esm2.registry import TINY
from packedesm.files import read_json, write_record
from packedesm.options import EmbedOptions, JobOptions
from packedesm.paths import Paths
from tests.commands import state_of
from tests.jobs import Sample, first_records

pytestmark = pytest.mark.slow

H100 = {"kind": "cuda", "name": "NVIDIA H100"}
BUDGET = 512


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500):
    return first_records(uniprot_500, 40, tmp_path_factory.mktemp("input") / "some.fasta")


@pytest.fixture
def begun(tmp_path, fasta) -> Sample:
    """A sample whose job was stopped after five packs, each of which is committed."""
    sample = Sample(tmp_path / "sample", fasta, token_budget=BUDGET, commit_packs=1)
    sample.stop_after(5, faults={"slow": 0.05})  # or it might end before it is stopped
    return sample


def settled_on(sample: Sample, device: dict, **plan) -> dict[str, tuple[str, int]]:
    """Let the state of a sample be of another device and plan; return what is in it."""
    content = read_json(sample.state / "plan.json")
    content["plan"] |= plan
    write_record(sample.state / "plan.json", content | {"device": device})
    return kept(sample)


def kept(sample: Sample) -> dict[str, tuple[str, int]]:
    """Return plan and commits; who works on them, and the journals, may change."""
    files = state_of(sample.state).items()
    return {path: state for path, state in files if path.endswith(("plan.json", ".commit"))}


def test_what_a_gpu_has_finished_is_not_thrown_away_on_a_cpu(begun):
    before = settled_on(begun, H100, dtype="float16", attention="torch_varlen")
    assert len(before) > 5
    status, line = begun.fail()
    assert status == 1
    assert f"{begun.state}: what is finished was computed on NVIDIA H100, in float16" in line
    assert "it is not a GPU" in line
    assert kept(begun) == before
    begun.run(dtype="float32")  # something else was asked for: that starts over, as ever


def test_a_lesser_gpu_is_refused_before_the_model_is_loaded(begun, monkeypatch):
    plan = {"dtype": "float16", "output_dtype": "float16", "attention": "torch_varlen"}
    before = settled_on(begun, H100, **plan)
    torch.backends.cuda.matmul.allow_tf32 = True

    @contextmanager
    def leased(_device):
        # From here on CUDA may be used.
        assert not torch.backends.cuda.matmul.allow_tf32
        yield Device(torch.device("cuda", 0), None, "Tesla T4", 16 << 30)

    monkeypatch.setattr(job, "leased_device", leased)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    asked = EmbedOptions.of(begun.config), JobOptions.of(begun.config)
    with pytest.raises(
        Fault, match=r"Tesla T4 cannot go on with it \(attention torch_varlen: .*7.5"
    ):
        embed_shard(begun.paths, 0, begun.checkpoint, *asked, threads=1)
    assert kept(begun) == before


def test_another_cpu_goes_on(begun):
    done = settled_on(begun, {"kind": "cpu", "name": "another processor"})
    assert "starting over" not in begun.run()
    run = read_json(begun.paths.shard_run(0))
    assert (run["restarts"], run["recomputed_packs"]) == (1, 0)
    assert run["packs"] > len(done) - 1


@pytest.fixture
def stop_before(tmp_path, fasta, monkeypatch):
    """Return a function that stops a command at a step; it gives paths, configuration and files.

    The command has then finished the first of two shards, it says on a GPU.
    """
    checkpoints = str(tmp_path / "checkpoints")
    config = {"fasta": str(fasta), "model": TINY, "checkpoints": checkpoints}
    config = resolve({**config, "shards": 2, "verify": {"sequences": 2}})
    paths = Paths(tmp_path / "out")

    def stop(step: str, call: int):
        real, calls = getattr(pipeline, step), []

        def stopped(*arguments, **options):
            calls.append(step)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline, step, stopped)
            pipeline.embed_fasta(paths, config, threads=1)
        run = read_json(paths.shard_run(0))
        write_record(paths.shard_run(0), run | {"device": run["device"] | H100})
        return paths, config, state_of(paths.shard_run(0).parent)

    return stop


def test_shards_that_a_gpu_has_finished_are_not_computed_again_on_a_cpu(stop_before):
    paths, config, files = stop_before("embed_shard", 2)
    with pytest.raises(Fault, match=f"{paths.root}: shard 0 was embedded .* on NVIDIA H100"):
        pipeline.embed_fasta(paths, config, threads=1)
    assert state_of(paths.shard_run(0).parent) == files


def test_where_no_shard_is_missing_any_machine_merges_them(stop_before):
    paths, config, files = stop_before("merge_shards", 1)
    pipeline.embed_fasta(paths, config, threads=1)
    assert state_of(paths.shard_run(0).parent) == files
    assert len(np.load(paths.array("mean"))) == 40
