"""What a job does before its first pack: number formats, and proof that they are right here."""

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import packedesm
from packedesm import cli
from packedesm.config import resolve
from packedesm.device.hardware import Device
from packedesm.embedding import job as jobs
from packedesm.embedding.choice import Choice, RunChoice
from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import read_record
from packedesm.paths import Paths
from packedesm.pipeline import embed_fasta
from tests.fake_cuda.streams import FakeCuda
from tests.jobs import Sample, first_records
from tests.sharp import computing_wrong, write_large, write_sharp

GPU = Device(torch.device("cuda", 0), "GPU-1", "a made-up GPU", 8 << 30)
FIXED = {"attention": "sdpa", "token_budget": 2048, "verify": {"sequences": 6}, "max_length": 60}
FIXED |= {"dtype": "auto"}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    return first_records(uniprot_500, 8, tmp_path_factory.mktemp("input") / "some.fasta")


@contextmanager
def made_up_gpu(capability=(9, 0)):
    """Let jobs run on a GPU whose numbers the CPU computes."""

    @contextmanager
    def leased(_device):
        yield GPU

    answers = {
        "get_device_capability": lambda _device=None: capability,
        "get_device_name": lambda _device=None: GPU.name,
        "mem_get_info": lambda _device=None: (8 << 30, 8 << 30),
    }
    with ExitStack() as stack:
        cuda = stack.enter_context(FakeCuda())
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(jobs, "leased_device", leased))
        stack.enter_context(torch.no_grad())
        yield cuda


def embed(tmp_path, fasta, model, name="out", **config) -> Paths:
    paths = Paths(tmp_path / name)
    embed_fasta(paths, resolve({"fasta": str(fasta), "model": str(model), **FIXED, **config}), 1)
    return paths


def told(paths: Paths) -> ShardRun:
    return ShardRun.read(paths.shard_run(0))


def test_auto_is_float16_where_it_passes(tmp_path, fasta):
    with made_up_gpu():
        paths = embed(tmp_path, fasta, write_sharp(tmp_path / "w.pt", 1))
    assert told(paths).plan.dtype == "float16"
    assert told(paths).first_check["passed"]


def test_auto_goes_on_to_bfloat16_where_float16_overflows_and_says_so(tmp_path, fasta, caplog):
    with made_up_gpu():
        paths = embed(tmp_path, fasta, write_large(tmp_path / "w.pt"))
    run = told(paths)
    assert (run.plan.dtype, run.plan.output_dtype) == ("bfloat16", "float16")
    assert "float16 misses the first check" in run.plan.reasons["dtype"]
    assert "dtype auto: float16 misses the first check" in caplog.text
    assert read_record(paths.manifest)["dtype"] == "bfloat16"


@pytest.mark.parametrize("capability", [(9, 0), (7, 5)])
def test_auto_goes_on_to_float32_where_nothing_less_passes(tmp_path, fasta, capability):
    """On a GPU without bfloat16 that is not tried."""
    with made_up_gpu(capability):
        paths = embed(tmp_path, fasta, write_sharp(tmp_path / "w.pt", 32))
    run = told(paths)
    assert run.plan.dtype == "float32"
    reason = run.plan.reasons["dtype"]
    assert "float16 misses" in reason
    assert ("bfloat16 misses" in reason) == (capability == (9, 0))
    results = packedesm.open(paths.root)
    assert results.array().dtype == np.float32
    assert read_record(paths.verification)["worst"]["relative_l2"] < 1e-5


def test_shards_after_the_first_adopt_what_it_chose(tmp_path, fasta, caplog):
    with made_up_gpu():
        paths = embed(tmp_path, fasta, write_sharp(tmp_path / "w.pt", 32), shards=2)
    first, second = (ShardRun.read(paths.shard_run(shard)).plan for shard in (0, 1))
    assert first.dtype == second.dtype == "float32"
    assert second.reasons["dtype"].startswith("as the first job of this run has chosen")
    assert caplog.text.count("auto: float16 misses the first check") == 1


def test_a_choice_that_a_device_cannot_adopt_stops_its_job(tmp_path, fasta):
    model = write_large(tmp_path / "w.pt")
    sample = Sample(tmp_path / "sample", fasta, model=str(model), **FIXED)
    with made_up_gpu(), pytest.raises(StopIteration), dying_at_the_first_pack():
        run(sample)
    (choice,) = sample.paths.choices.iterdir()
    assert read_record(choice)["dtype"] == "bfloat16"
    with made_up_gpu((7, 5)), pytest.raises(Fault, match=r"bfloat16, chosen on a made-up GPU"):
        run(sample)
    # On a CPU too, once something of it is finished; until then it is given up.
    with (
        committed_by_another(sample),
        pytest.raises(Fault, match=r"dtype auto is float32 on .*name a dtype that all have"),
    ):
        run(sample)
    assert run(sample).plan.dtype == "float32"


def test_who_is_second_to_choose_adopts_what_the_first_said(tmp_path, fasta):
    sample = Sample(tmp_path / "sample", fasta, **FIXED)
    say = RunChoice.say

    def after_another(self, choice):
        say(self, Choice("float32", "it was faster", "cuda", "another GPU"))
        return say(self, choice)

    with made_up_gpu(), mock.patch.object(RunChoice, "say", after_another):
        plan = run(sample).plan
    assert plan.dtype == "float32"
    assert plan.reasons["dtype"].endswith("has chosen: it was faster")


@contextmanager
def committed_by_another(sample: Sample):
    commit = sample.paths.shard_state(1) / "1.commit"
    commit.parent.mkdir(parents=True)
    commit.touch()
    yield
    commit.unlink()


@contextmanager
def dying_at_the_first_pack():
    with mock.patch.object(jobs, "embed_packs", side_effect=StopIteration):
        yield


def run(sample: Sample, **config) -> ShardRun:
    config = sample.config | config
    asked = jobs.EmbedOptions.of(config), jobs.JobOptions.of(config)
    return jobs.embed_shard(sample.paths, 0, sample.checkpoint, *asked, threads=1)


def test_whoever_says_first_is_adopted_and_a_damaged_choice_is_made_anew(tmp_path):
    choices = [RunChoice(tmp_path / "choices", {"dtype": "auto"}) for _ in range(2)]
    first, second = Choice("float32", "x", "cpu", "one"), Choice("float16", "y", "cuda", "another")
    assert choices[0].read() is None
    assert choices[0].say(first) == choices[1].say(second) == choices[1].read() == first
    assert list((tmp_path / "choices").iterdir()) == [choices[0].path]
    other = RunChoice(tmp_path / "choices", {"dtype": "auto", "outputs": ["cls"]})
    assert other.read() is None
    choices[0].path.write_text("{")
    assert choices[1].read() is None
    assert choices[1].say(second) == choices[0].read() == second


def test_a_choice_that_appears_just_before_ones_own_is_not_replaced(tmp_path):
    choice = RunChoice(tmp_path, {"dtype": "auto"})
    first, second = Choice("float32", "x", "cuda", "one"), Choice("float16", "y", "cuda", "another")
    assert choice.say(first) == first
    answers = iter([None])  # as it was when the second looked
    with mock.patch.object(RunChoice, "read", lambda self: next(answers, first)):
        assert choice.say(second) == first
    assert choice.read() == first


def command(tmp_path, fasta, *arguments: str) -> int:
    fixed = ["--attention", "sdpa", "--verify-sequences", "6", "--max-length", "60"]
    return cli.main(["embed", str(fasta), "-o", str(tmp_path / "out"), *fixed, *arguments])


def test_weights_that_bfloat16_does_not_bear_are_told_before_the_first_pack(
    tmp_path, fasta, uniprot_500, capsys
):
    model = write_sharp(tmp_path / "sharp.pt", 16)
    with mock.patch.object(jobs, "embed_packs", side_effect=AssertionError("a pack was begun")):
        status = command(tmp_path, uniprot_500, "--model", str(model), "--dtype", "bfloat16")
    assert status == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("packedesm:")]
    assert "in bfloat16 on" in line and "relative L2 0.0" in line
    assert "where 0.02 and 0.9995 pass" in line
    assert "float32 passes: say dtype float32" in line
    assert not (tmp_path / "out").exists()
    # And who follows the advice has his vectors.
    assert command(tmp_path, fasta, "--model", str(model), "--dtype", "float32") == 0


# Rounding to bfloat16 costs as much as one layer of six that is off by a hundredth.
@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1.01), ("bfloat16", 1.3)])
def test_a_device_that_computes_wrong_is_told_before_the_first_pack(
    tmp_path, fasta, capsys, dtype, factor
):
    with computing_wrong(factor):
        assert command(tmp_path, fasta, "--dtype", dtype) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("packedesm:")]
    assert "computes wrong, or is damaged" in line
    assert not (tmp_path / "out").exists()


def test_weights_that_hold_nan_are_told_to_do_so(tmp_path, fasta, capsys):
    model = write_sharp(tmp_path / "nan.pt", 1)
    content = torch.load(model, weights_only=False)
    content["model"]["encoder.sentence_encoder.layers.2.fc1.weight"][0, 0] = torch.nan
    torch.save(content, model)
    assert command(tmp_path, fasta, "--model", str(model)) == 2
    assert "the weights hold NaN or infinity" in capsys.readouterr().err


def test_a_miss_by_the_angle_alone_is_not_told_to_be_rounding(tmp_path, fasta, capsys):
    """Of one residue among many: the distance over all of them may well pass."""
    model, outputs = write_sharp(tmp_path / "w.pt", 6), ("--outputs", "residue")
    found = command(tmp_path, fasta, "--model", str(model), "--dtype", "bfloat16", *outputs)
    assert found == 2
    assert "float32 passes: say dtype float32" in capsys.readouterr().err


def test_another_input_is_asked_anew(tmp_path, fasta, uniprot_500):
    """What a job has chosen for other records binds nobody."""
    sample = Sample(tmp_path / "sample", fasta, **FIXED)
    with made_up_gpu(), dying_at_the_first_pack(), pytest.raises(StopIteration):
        run(sample)
    other = first_records(uniprot_500, 5, tmp_path / "other.fasta")
    again = Sample(tmp_path / "sample", other, **FIXED)
    with committed_by_another(again):
        assert run(again).plan.dtype == "float32"


def test_limits_below_rounding_are_told_to_be_that(tmp_path, fasta, capsys):
    assert command(tmp_path, fasta, "--verify-max-relative-l2", "1e-9") == 2
    assert "rounding in float32 costs as much: allow it" in capsys.readouterr().err


def test_a_resumed_job_on_a_device_that_computes_wrong_stops_and_keeps_what_is_there(
    tmp_path, fasta
):
    sample = Sample(tmp_path / "sample", fasta, token_budget=300, commit_packs=1)
    sample.stop_after(1)
    before = sample.committed()
    with computing_wrong(1.3), pytest.raises(Fault, match="computes wrong"):
        run(sample)
    assert sample.committed() == before
    run(sample)


def test_what_is_not_finite_in_a_named_format_is_left_to_float32(tmp_path, fasta, caplog):
    model = write_large(tmp_path / "w.pt")
    with caplog.at_level(logging.INFO), made_up_gpu():
        paths = embed(tmp_path, fasta, model, dtype="float16")
    run = told(paths)
    assert run.plan.dtype == "float16"
    assert run.first_check["not_finite"] == 4
    assert len(run.float32_rows) == run.records
    assert read_record(paths.verification)["passed"]


def test_without_verification_there_is_no_first_check(tmp_path, fasta):
    with computing_wrong():
        paths = embed(tmp_path, fasta, "esm2_t6_3M_demo", verify={"sequences": 0})
    assert told(paths).first_check is None
    assert read_record(paths.verification)["passed"] is None


def test_windows_and_every_output_are_compared(tmp_path, fasta):
    outputs = ["mean", "cls", "max", "residue"]
    windows = {"long_sequences": "window", "max_length": 100, "window_overlap": 30}
    paths = embed(tmp_path, fasta, "esm2_t6_3M_demo", outputs=outputs, **windows)
    check = told(paths).first_check
    assert (check["compared"], check["passed"]) == (16, True)
    assert 0 < check["relative_l2"] < 1e-5


def test_another_sample_than_the_jobs_is_refused(tmp_path, fasta):
    sample = Sample(tmp_path / "sample", fasta)
    with pytest.raises(Fault, match=r"first\.json: was made from other files"):
        run(sample, seed=5)
    other = replace(sample.checkpoint, sha256="1" * 64)
    sample.checkpoint = other
    with pytest.raises(Fault, match=r"first\.json: was made from other files"):
        run(sample)
