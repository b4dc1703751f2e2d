"""Masked marginals and pseudo-perplexity are those of masked passes of fair-esm, one by one."""

import gzip
import threading
from importlib import resources
from types import SimpleNamespace

import esm
import numpy as np
import pytest
import torch

from packedesm.device import token_budget
from packedesm.embedding import cost
from packedesm.embedding.cost import (
    in_words,
    job_flops,
    masked_flops,
    masked_seconds,
    passes_left,
)
from packedesm.embedding.fallback import Fallback, Means
from packedesm.embedding.lane import CpuLane
from packedesm.embedding.masked import pseudo_perplexity
from packedesm.embedding.output import shard_writer
from packedesm.embedding.replan import PackPlan
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.esm2.tensor_files import load_archive
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items
from tests.embedding.test_fallback import Device
from tests.sharp import write_sharp
from tests.typed import embed_plan, policy

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = resources.files("packedesm") / "data" / "esm2_t6_3M_demo.pt"
BAR = 5e-6  # relative L2, float32
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MASKED = ("masked_marginals", "pseudo_perplexity")
STANDARD = "LAGVSERTIDPKQNFYMHWC"
WINDOWS = {"max_length": 8, "long_sequences": "window", "window_overlap": 3}
SHORT = ("MKVLAWGIRE", "ACD", "MKVLAWGIRE", "WYVTSRQPNMLKIHGFEDCA", "XBUZO", "M")


class Pair:
    """Our model and fair-esm's, with the same weights."""

    def __init__(self, path):
        content = load_archive(path)
        oracle, self.alphabet = esm.pretrained.load_model_and_alphabet_core("esm2_", content)
        self.oracle = oracle.eval()
        self.geometry, self.state = load_state(path)
        self.head = content["model"]
        self.model = self.ours(torch.float32)

    def ours(self, dtype):
        model = PackedESM2.from_fair_esm(self.state, self.geometry, dtype)
        model.language_head = LanguageModelHead.from_fair_esm(self.head).to(dtype)
        return model

    @torch.inference_mode()
    def said(self, sequence: str, residue: int) -> np.ndarray:
        """Return fair-esm's log probabilities of all 33 tokens where one residue is masked."""
        _, _, tokens = self.alphabet.get_batch_converter()([("", sequence)])
        tokens[0, residue + 1] = self.alphabet.mask_idx
        logits = self.oracle(tokens)["logits"][0, residue + 1]
        return logits.double().log_softmax(0).numpy()

    def expected(self, sequences, spans) -> tuple[np.ndarray, np.ndarray]:
        """Return marginals and pseudo-perplexities by a plain loop.

        `spans` gives the window in which a residue of a sequence is masked.
        """
        marginals, perplexities = [], []
        columns = [self.alphabet.get_idx(letter) for letter in STANDARD]
        for sequence in sequences:
            own = []
            for residue, letter in enumerate(sequence):
                start, stop = spans(sequence, residue)
                said = self.said(sequence[start:stop], residue - start)
                marginals.append(said[columns])
                own.append(said[self.alphabet.get_idx(letter)])
            perplexities.append(np.exp(-np.mean(own)))
        return np.array(marginals), np.array(perplexities)


def whole(sequence, _residue):
    return 0, len(sequence)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory) -> Pair:
    """A small model whose attention is sharp."""
    return Pair(write_sharp(tmp_path_factory.mktemp("sharp") / "sharp.pt", 8))


class Job:
    """The records of a shard, what is asked of them, and the packs that come of it."""

    def __init__(self, pair, paths, arrays=MASKED, budget=64, **config):
        self.pair, self.paths, self.arrays, self.budget = pair, paths, arrays, budget
        dataset = SequenceDataset(paths.shard_fasta(0), policy(**config))
        unmasked = bool(set(arrays) - set(MASKED))
        self.items = Items(dataset, unmasked=unmasked, masked=bool(set(arrays) & set(MASKED)))
        self.replans, self.packs = (), []
        self.names = []  # of items, that were asked for

    def plan(self, **changes):
        return embed_plan(arrays=self.arrays, token_budget=self.budget, **changes)

    def run(self, done=(), device=CPU, dtype="float32", stop_after=None, **faults):
        """Embed what is not among the packs `done`, on a device with `faults`; return all packs."""
        items, self.packs = self.items, list(done)
        self.packplan = PackPlan(
            items.tokens, items.plan(self.budget), self.replans, records=items.records
        )
        self.model = self.device(dtype, **faults)
        runner = AsyncInferenceRunner(self.model, self.plan(dtype=dtype), device)

        def sink(pack):
            assert threading.current_thread() is not threading.main_thread()
            if len(self.packs) - len(done) == stop_after:
                raise InterruptedError
            self.packs.append(pack)

        means = Means(self._embed, items.tokens, self._load, self._name, self._keep)
        numbers = [pack.statistics.pack for pack in done]
        deferred = [item for pack in done for item in pack.deferred.tolist()]
        Fallback(means, self.packplan, sink, numbers, deferred).run(runner)
        return self.packs

    def device(self, dtype, **faults):
        model = self.pair.ours(getattr(torch, dtype))
        device = Device(model, **faults)
        device.language_head, device.embed_tokens = model.language_head, model.embed_tokens
        return device

    def _load(self, _device):
        return self.device("float32")

    def _keep(self, replans):
        self.replans = tuple(replans)

    def _name(self, item):
        self.names.append(item)
        return f"item {item}"

    def _embed(self, runner, numbers, sink):
        packs = [self.packplan[number] for number in numbers]
        batches = create_async_dataloader(self.items, packs, workers=0, pin_memory=False, seed=1)
        budget = self.packplan.budget(numbers[0])
        runner.run(batches, sink, numbers=numbers, token_budget=budget)

    def written(self, packs=None) -> dict[str, np.ndarray]:
        """Return the shard's arrays as they are written of some packs."""
        residues, width = self.items.dataset.embedded_lengths, self.pair.geometry.width
        with shard_writer(self.paths, 0, residues, self.plan(), width=width) as writer:
            for pack in self.packs if packs is None else packs:
                writer.write(pack)
        return {name: np.load(self.paths.shard_array(0, name)) for name in self.arrays}


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def assert_equal(found, expected, rows):
    """Compare with fair-esm record by record; `rows` are the numbers of their residues."""
    marginals, perplexities = expected
    assert found["masked_marginals"].shape == (sum(rows), 20)
    assert found["pseudo_perplexity"].shape == (len(rows),)
    for stop, count in zip(np.cumsum(rows), rows, strict=True):
        record = slice(stop - count, stop)
        assert distance(found["masked_marginals"][record], marginals[record]) <= BAR
    # Of untrained weights they are as large as 1e18, and as the power of e of what is compared.
    logs = np.log(found["pseudo_perplexity"].astype(np.float64))
    np.testing.assert_allclose(logs, np.log(perplexities), rtol=BAR)


def test_five_proteins_equal_a_plain_loop_over_fair_esm(tmp_path_factory, uniprot_500, shard, tell):
    path = tmp_path_factory.mktemp("model") / "random.pt"
    write_random_checkpoint(path, MODELS["esm2_t6_8M_UR50D"], seed=3)
    text = gzip.decompress(uniprot_500.read_bytes()).decode().removeprefix(">")
    records = [record.partition("\n")[2].replace("\n", "") for record in text.split("\n>")]
    sequences = sorted(records, key=len)[:25:5]
    pair = Pair(path)
    job = Job(pair, shard(*sequences), arrays=("mean", *MASKED), budget=512)
    job.run()
    found = job.written()
    expected = pair.expected(sequences, whole)
    assert_equal(found, expected, list(map(len, sequences)))
    far = distance(found["masked_marginals"], expected[0])
    tell(f"masked marginals of {sum(map(len, sequences))} residues, 8M: relative L2 {far:.1e}")
    # Copies of one protein go over several packs, and a pack holds copies of several proteins.
    records_of = [
        set(job.items.records_of(p.rows).tolist()) for p in job.packs if p.statistics.masked
    ]
    assert any(len(of) > 1 for of in records_of)
    assert sum(0 in of for of in records_of) > 1


def test_pseudo_perplexity_of_a_trained_model_equals_that_of_fair_esm(shard):
    pair = Pair(DEMO)
    sequences = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "MKV")
    job = Job(pair, shard(*sequences), arrays=("pseudo_perplexity",))
    job.run()
    found = job.written()["pseudo_perplexity"]
    np.testing.assert_allclose(found, pair.expected(sequences, whole)[1], rtol=BAR)
    assert 2 < found[0] < 33


def test_a_model_that_is_sharp_and_odd_letters(sharp, shard):
    job = Job(sharp, shard(*SHORT, deduplicate=False))
    job.run()
    assert_equal(job.written(), sharp.expected(SHORT, whole), list(map(len, SHORT)))


def test_of_a_truncated_record_the_residues_that_are_embedded_have_passes(sharp, shard):
    config = {"max_length": 8, "long_sequences": "truncate"}
    job = Job(sharp, shard(*SHORT[:4], deduplicate=False, **config), **config)
    job.run()
    cut = [sequence[:8] for sequence in SHORT[:4]]
    assert_equal(job.written(), sharp.expected(cut, whole), list(map(len, cut)))


def test_under_windows_a_residue_is_masked_in_that_in_which_it_stands_furthest_inside(sharp, shard):
    job = Job(sharp, shard(*SHORT, deduplicate=False, **WINDOWS), **WINDOWS)
    job.run()

    def window(sequence, residue):
        deepest = None
        for start, stop in policy(**WINDOWS).windows(len(sequence)):
            inside = min(residue - start, stop - 1 - residue)
            if inside >= 0 and (deepest is None or inside > deepest[0]):
                deepest = inside, (start, stop)
        return deepest[1]

    assert window(SHORT[3], 7) == (4, 12)
    assert_equal(job.written(), sharp.expected(SHORT, window), list(map(len, SHORT)))


def test_each_array_comes_alone_as_it_comes_with_the_others(sharp, shard):
    paths = shard(*SHORT, deduplicate=False)
    together = Job(sharp, paths, arrays=("mean", "logits", *MASKED))
    together.run()
    found = together.written()
    for names in (("mean", "logits"), MASKED[:1], MASKED[1:]):
        alone = Job(sharp, paths, arrays=names)
        packs = alone.run()
        for name, array in alone.written().items():
            np.testing.assert_array_equal(array, found[name])
        masked = {bool(pack.statistics.masked) for pack in packs}
        assert masked == {names[0] in MASKED}  # and no record goes through the model for nothing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_probabilities_are_near_and_sum_to_one(sharp, shard, dtype):
    paths = shard(*SHORT, deduplicate=False)
    job = Job(sharp, paths, arrays=("masked_marginals",))
    found = job.written(job.run(dtype=dtype))["masked_marginals"]
    expected, _ = sharp.expected(SHORT, whole)
    assert 1e-6 < distance(found, expected) < {"float16": 0.01, "bfloat16": 0.05}[dtype]
    assert (np.exp(found.astype(np.float64)).sum(1) < 1 + 1e-6).all()  # 13 tokens are left out


def vectors(packs):
    return [(pack.statistics.pack, pack.rows.tolist(), pack.vectors) for pack in packs]


def test_what_is_interrupted_goes_on_with_the_same_bits(sharp, shard):
    arrays = ("mean", *MASKED)
    quiet = Job(sharp, shard(*SHORT), arrays=arrays)
    everything = quiet.run()
    expected = quiet.written()
    kinds = [pack.statistics.masked for pack in everything]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1}
    for stop_after in range(len(everything)):
        job = Job(sharp, quiet.paths, arrays=arrays)
        with pytest.raises(InterruptedError):
            job.run(stop_after=stop_after)
        assert len(job.packs) == stop_after
        job.run(done=job.packs)
        found = job.written()
        assert all(np.array_equal(found[name], expected[name]) for name in arrays)


@pytest.mark.parametrize("holds", [22, 40])
def test_packs_that_memory_does_not_hold_are_split_and_stay_of_one_kind(sharp, shard, holds):
    arrays = ("mean", *MASKED)
    job = Job(sharp, shard(*SHORT), arrays=arrays)
    expected = job.written(job.run())
    packs = job.run(holds=holds)
    assert job.replans
    assert max(pack.statistics.tokens for pack in packs) <= holds
    for pack in packs:
        assert set(pack.vectors) == (set(MASKED) if pack.statistics.masked else {"mean"})
        assert ((pack.rows >= job.items.records) == pack.statistics.masked).all()
    found = job.written()
    for name in arrays:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=2e-6)
    # The next attempt has the same plan.
    first = packs[: len(packs) // 2]
    job.run(done=first, holds=holds)
    again = job.written()
    assert all(np.array_equal(again[name], found[name]) for name in arrays)


@pytest.fixture
def gpu(monkeypatch):
    """A made-up GPU that computes as the CPU does."""
    monkeypatch.setattr("packedesm.embedding.runner.CudaLane", lambda _device: CpuLane())
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    return GPU


def test_copies_that_half_precision_cannot_embed_get_a_pass_in_float32(sharp, shard, gpu):
    arrays = ("mean", *MASKED)
    job = Job(sharp, shard(*SHORT), arrays=arrays)
    expected = job.written(job.run())
    packs = job.run(device=gpu, dtype="bfloat16", nan=12)  # the record of ten residues, all copies
    again = [pack for pack in packs if pack.statistics.float32_records]
    assert [pack.statistics.masked for pack in again] == [0] + [1] * (len(again) - 1)
    redone = np.concatenate([pack.rows for pack in again if pack.statistics.masked])
    assert job.items.records_of(redone).tolist() == [0] * 10
    found = job.written()
    assert distance(found["masked_marginals"][:10], expected["masked_marginals"][:10]) < 1e-6
    assert distance(found["masked_marginals"][10:], expected["masked_marginals"][10:]) > 1e-4
    assert sum(pack.statistics.records for pack in packs if pack.statistics.masked) == len(
        expected["masked_marginals"]
    )


def test_a_copy_that_the_gpu_does_not_hold_goes_to_the_cpu(sharp, shard, gpu):
    arrays = ("mean", *MASKED)
    job = Job(sharp, shard(*SHORT), arrays=arrays)
    expected = job.written(job.run())
    packs = job.run(device=gpu, holds=21)  # one record has 22 tokens, and each copy of it
    deferred = [pack for pack in packs if len(pack.deferred)]
    assert {int(pack.statistics.masked) for pack in deferred} == {0, 1}
    assert all(set(p.vectors) == set(MASKED) for p in deferred if p.statistics.masked)
    found = job.written()
    for name in arrays:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=2e-6)


def test_a_copy_that_is_missing_or_comes_twice_is_noticed(sharp, shard):
    job = Job(sharp, shard(*SHORT))
    packs = job.run()
    with pytest.raises(RuntimeError, match=r"nothing came of \d+ masked residues, first \[0, 1"):
        job.written([])
    with pytest.raises(RuntimeError, match="came twice"):
        job.written([*packs, packs[0]])
    packs[0].vectors["pseudo_perplexity"][0] = np.nan
    with pytest.raises(RuntimeError, match="NaN"):
        job.written(packs)
    assert not job.paths.shard_array(0, "masked_marginals").exists()


def test_pseudo_perplexity_is_of_the_mean_over_each_record():
    logs = np.log(np.array([0.5, 0.5, 0.25, 1.0], np.float32))
    found = pseudo_perplexity(logs, np.array([2, 1, 1]))
    np.testing.assert_allclose(found, [2, 4, 1], rtol=1e-6)
    assert found.dtype == np.float32
    assert len(pseudo_perplexity(logs[:0], np.array([], np.int64))) == 0


def test_the_cost_of_a_job_counts_every_pass(sharp, shard):
    geometry = Geometry(layers=2, width=32, heads=4)
    paths = shard("MKV", "ACDEFGHIKL")
    items = Job(sharp, paths, arrays=("mean", *MASKED)).items
    passes = [5, 12, *[5] * 3, *[12] * 10]
    assert job_flops(geometry, items) == geometry.flops(passes)
    assert passes_left(items, []) == (13, 135)
    done = [
        SimpleNamespace(masked=1, records=3, tokens=15),
        SimpleNamespace(masked=0, records=2, tokens=17),
    ]
    assert passes_left(items, done) == (10, 120)
    runner = SimpleNamespace(model=sharp.model, plan=embed_plan(token_budget=24))
    assert masked_seconds(runner, items, 135, None) is None
    usual = masked_seconds(runner, items, 135, 1e6)
    assert usual == pytest.approx(sharp.geometry.flops(passes[2:]) / 0.6e6)
    assert masked_seconds(runner, items, 120, 1e6) == pytest.approx(usual * 120 / 135)
    only = Job(sharp, paths, arrays=MASKED).items
    assert job_flops(geometry, only) == geometry.flops(passes[2:])
    assert job_flops(geometry, Job(sharp, paths, arrays=("mean",)).items) == geometry.flops([5, 12])


def test_a_long_job_measures_what_its_passes_take(sharp, shard, monkeypatch):
    sequences = ["MKVLAWGIRE" * n for n in (3, 9, 14, 20)]
    items = Job(sharp, shard(*sequences), arrays=MASKED).items
    plan = embed_plan(token_budget=204)
    runner = SimpleNamespace(model=sharp.model, plan=plan, device=torch.device("cpu"))
    timed = []
    forward = token_budget.forward_seconds

    def slowed(model, attention, lengths, **how):
        timed.append(lengths)
        assert forward(model, attention, lengths, **how) > 0
        return model.geometry.flops(lengths) / 1e6

    monkeypatch.setattr(cost, "forward_seconds", slowed)
    whole = items.counts()["masked_tokens"]
    flops = masked_flops(sharp.geometry, items)
    assert masked_seconds(runner, items, whole, 1e9) == pytest.approx(flops / 1e6)
    assert masked_seconds(runner, items, whole, None) == pytest.approx(flops / 1e6)
    assert 100 * sum(map(sum, timed[:3])) <= whole
    assert {length for pack in timed for length in pack} <= {32, 92, 142, 202}
    timed.clear()  # what is left is not worth it
    assert masked_seconds(runner, items, whole // 100, 1e9) == pytest.approx(
        whole // 100 / whole * flops / 0.6e9
    )
    assert not timed


def test_the_cost_in_words():
    assert in_words(["mean", "masked_marginals"], 500, 176_000, 3.1 * 3600) == (
        "masked_marginals of 500 proteins is 176,000 passes, one for each residue, about 3.1 h here"
    )
    both = in_words(MASKED, 1, 1, None)
    assert both == (
        "masked_marginals and pseudo_perplexity of 1 protein are 1 pass, one for each residue"
    )
    for seconds, text in ((0.2, "1 s"), (89, "89 s"), (400, "6.7 min"), (9e5, "10 days")):
        assert in_words(MASKED, 1, 1, seconds).endswith(f"about {text} here")
