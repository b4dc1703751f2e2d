"""Runs in int8: right, with the same bits whatever a protein is embedded with, and told."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import packedesm
from packedesm.config import resolve
from packedesm.device.auto import load_fitting
from packedesm.embedding.choice import Choice, RunChoice
from packedesm.embedding.record import ShardRun
from packedesm.errors import UserError
from packedesm.esm2 import int8, int8_model
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import DEMO
from packedesm.files import read_record
from packedesm.paths import Paths
from packedesm.pipeline import embed_fasta
from tests.esm2.test_kernels import HERE
from tests.jobs import Sample, first_records

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(HERE not in int8._LIBRARIES, reason=f"no kernel is for {HERE}"),
]
IN_INT8 = {"model": DEMO, "dtype": "int8"}


@pytest.fixture(scope="module", autouse=True)
def _nothing_remembered(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    return first_records(uniprot_500, 12, tmp_path_factory.mktemp("input") / "some.fasta")


def embed(root, fasta, **config) -> Paths:
    embed_fasta(Paths(root), resolve({"fasta": str(fasta), **IN_INT8, **config}), threads=1)
    return Paths(root)


@pytest.fixture(scope="module")
def run(tmp_path_factory, fasta) -> Paths:
    outputs = {"outputs": ["mean", "logits"], "layers": [0, 3, "last"]}
    return embed(tmp_path_factory.mktemp("int8") / "out", fasta, **outputs)


def test_a_run_is_verified_and_says_what_was_int8(run):
    verification = read_record(run.verification)
    assert verification["passed"]
    manifest = read_record(run.manifest)
    assert (manifest["dtype"], manifest["float_products"]) == ("int8", [])
    reason = ShardRun.read(run.shard_run(0)).plan.reasons["dtype"]
    assert f"products in int8 by {int8.kernel()}" in reason
    for told in (reason, "in int8"):
        assert told in run.report.read_text(encoding="utf-8")


def test_vectors_of_every_layer_are_near_those_of_float32(run, fasta):
    found = packedesm.open(run.root)
    exact = packedesm.embed(fasta, DEMO, device="cpu", layers=[0, 3, "last"], check=False)
    for layer in (0, 3, 6):
        truth = exact.array("mean", layer=layer)
        apart = np.linalg.norm(found.array("mean", layer=layer) - truth, axis=1)
        assert (apart <= 0.02 * np.linalg.norm(truth, axis=1)).all()
        assert layer == 0 or (apart > 1e-4 * np.linalg.norm(truth, axis=1)).all()  # not float32


def test_a_protein_has_the_same_bits_alone_and_in_any_pack(run, fasta):
    """Also with other numbers of threads, and in memory."""
    whole = packedesm.open(run.root)
    model = packedesm.load_model(DEMO, "int8", "cpu", check=False)
    before = torch.get_num_threads()
    sequences = packedesm.open(run.root).index
    texts = dict(zip(whole.ids, fasta_sequences(fasta), strict=True))
    try:
        for threads, budget in ((1, 300), (2, 2000)):
            torch.set_num_threads(threads)
            again = model.embed(texts, ["mean", "logits"], token_budget=budget)
            for array in ("mean", "logits"):
                np.testing.assert_array_equal(again.array(array), whole.array(array))
        last = list(texts)[-1]
        alone = model.embed({last: texts[last]})
    finally:
        torch.set_num_threads(before)
    assert len(sequences) == len(texts)
    np.testing.assert_array_equal(alone.vector(last), whole.vector(last))


def fasta_sequences(path):
    return ["".join(part.split("\n")[1:]) for part in path.read_text().split(">")[1:]]


def say_another(sample) -> None:
    """Let the run's first job have chosen something else."""
    (path,) = sample.paths.choices.glob("*.json")
    choices = RunChoice(path.parent, {})
    choices.path = path
    assert choices.read().float_products == ()
    choices.forget()
    choices.say(Choice("int8", "said by another job", "cpu", "a CPU", ("fc2",)))


def float_products(sample) -> tuple[str, ...]:
    return ShardRun.read(sample.paths.shard_run(0)).plan.float_products


def test_what_half_precision_does_not_hold_has_the_model_in_float32():
    model = packedesm.load_model(DEMO, "int8", "cpu", check=False)
    exact = model.in_float32(torch.device("cpu"))
    assert (model.esm2.number_format, exact.number_format) == ("int8", "float32")
    assert exact.layers[0].fc1.weight.dtype == torch.float32


def test_the_other_jobs_take_what_the_first_one_has_chosen(tmp_path, fasta):
    sample = Sample(tmp_path, fasta, **IN_INT8)
    sample.run()
    assert float_products(sample) == ()
    say_another(sample)
    log = sample.run()
    assert float_products(sample) == ("fc2",)
    assert re.search("int8: .*, but for fc2 in b?float", log)


def test_whoever_goes_on_takes_the_same_products(tmp_path, fasta):
    """Whatever others have chosen since."""
    sample = Sample(tmp_path, fasta, **IN_INT8, commit_packs=1, token_budget=1100)
    sample.stop_after(2)
    say_another(sample)
    sample.run()
    assert float_products(sample) == ()


def test_what_a_job_chooses_is_what_the_next_one_reads(tmp_path):
    choices = RunChoice(tmp_path, {"dtype": "int8"})
    choice = Choice("int8", "named", "cpu", "a CPU", ("qkv", "fc2"))
    assert choices.say(choice) == choices.read() == choice


def operations(kept) -> int:
    """Return the operations of some kinds of products, in squares of the width."""
    return sum({"qkv": 3, "attention_out": 1, "fc1": 4, "fc2": 4}[kind] for kind in kept)


def test_products_stay_float_that_cost_least_and_bring_it_near_enough(monkeypatch):
    """And if none do, a line says so."""
    checkpoint, cpu = prepare(DEMO, "auto"), torch.device("cpu")
    means, make, found, tried = int8_model._means, int8_model.quantise, [], []

    def watch(hidden, inputs):
        found.append(means(hidden, inputs))
        return found[-1]

    def note(model, ways, kept):
        tried.append(tuple(kept))
        return make(model, ways, kept)

    monkeypatch.setattr(int8_model, "read_calibration", lambda *_: None)
    monkeypatch.setattr(int8_model, "write_calibration", lambda *_: None)
    monkeypatch.setattr(int8_model, "_means", watch)
    monkeypatch.setattr(int8_model, "quantise", note)
    monkeypatch.setattr(int8_model, "_BEARS", 0.0)
    with pytest.raises(UserError, match="dtype int8: these weights do not bear it") as raised:
        load_fitting(checkpoint, "int8", "torch", cpu)
    assert [operations(kept) for kept in tried] == [0, 1, 3, 4, 4, 5, 7, 8]
    assert tried[:3] == [(), ("attention_out",), ("qkv",)]
    assert re.search("with only fc[12] in int8", str(raised.value))
    exact, *means_tried = found
    off = [float(((x - exact).norm(dim=1) / exact.norm(dim=1)).max()) for x in means_tried]
    assert off[-1] < off[0]
    bears = sorted(off)[3]
    monkeypatch.setattr(int8_model, "_BEARS", bears)
    model = load_fitting(checkpoint, "int8", "torch", cpu)
    first = next(kept for kept, x in zip(tried, off, strict=False) if x <= bears)
    assert {*int8_model.float_products(model)} == {*first}
    again = load_fitting(checkpoint, "int8", "torch", cpu, float_products=first)
    assert {*int8_model.float_products(again)} == {*first}


def test_a_width_without_a_kernel_is_refused_by_a_line():
    with pytest.raises(UserError, match="dtype int8: its kernels take widths in multiples of 16"):
        int8_model.expect_int8(torch.device("cpu"), Geometry(layers=2, width=40, heads=4))


def test_a_gpu_is_refused_by_a_line():
    with pytest.raises(UserError, match="dtype int8: its kernels run on a CPU; say float16"):
        int8_model.expect_int8(torch.device("cuda", 0))
