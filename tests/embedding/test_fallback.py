"""Packs that do not fit into memory, and values that are not finite."""

import numpy as np
import pytest
import torch

from packedesm.device.memory import out_of_memory
from packedesm.embedding.fallback import Fallback, Means
from packedesm.embedding.pack import not_finite
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.errors import Fault
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from tests.typed import embed_plan, policy

POLICY = policy()


CPU = torch.device("cpu")
BUDGET = 64
OUTPUTS = ["mean", "residue"]
SEQUENCES = [("ACDEFGHIKL"[: 1 + n % 10] * (1 + n % 7))[:40] for n in range(40)]
LONGEST = 42  # tokens


class Device:
    """A model on a device that holds so many tokens at once and yields NaN for one length."""

    def __init__(self, model, holds=10**9, nan_length=-1):
        self.model = model
        self.holds = holds
        self.nan_length = nan_length
        self.passes = []

    def forward_packed(self, input_ids, positions, cu_seqlens, max_seqlen, **options):
        self.passes.append(len(input_ids))
        if len(input_ids) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        hidden = self.model.forward_packed(input_ids, positions, cu_seqlens, max_seqlen, **options)
        lengths = cu_seqlens.diff()
        hidden[(lengths == self.nan_length).repeat_interleave(lengths)] = torch.nan
        return hidden


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_random_checkpoint(path, Geometry(layers=2, width=32, heads=2), seed=3)
    return path


@pytest.fixture
def embed(checkpoint, shard):
    """Return a function that embeds sequences on a `Device`: packs, passes and limits found."""
    geometry, state = load_state(checkpoint)

    def run(dtype="float32", limit=None, device=CPU, sequences=SEQUENCES, **faults):
        dataset = SequenceDataset(shard(*sequences, deduplicate=False).shard_fasta(0), POLICY)
        plan = plan_packs(dataset.tokens, BUDGET)
        model = Device(PackedESM2.from_fair_esm(state, geometry, getattr(torch, dtype)), **faults)
        kept = embed_plan(outputs=tuple(OUTPUTS), token_budget=BUDGET)
        means = Means(
            load_float32=lambda place: PackedESM2.from_fair_esm(state, geometry, device=place),
            collate=lambda places: VarlenCollator()(dataset.__getitems__(places.tolist())),
            name=lambda item: f"record {item + 1}",
        )
        limits = []
        fallback = Fallback(means, device, kept, limit=limit, remember=limits.append)
        runner = AsyncInferenceRunner(model, kept, CPU, fallback)
        batches = create_async_dataloader(dataset, plan, workers=0, pin_memory=False, seed=1)
        packs = []
        runner.run(batches, packs.append)
        return packs, model.passes, limits

    return run


def assert_same_vectors(packs, expected, rtol=1e-4):
    assert [pack.rows.tolist() for pack in packs] == [pack.rows.tolist() for pack in expected]
    for pack, other in zip(packs, expected, strict=True):
        for output in OUTPUTS:
            np.testing.assert_allclose(
                pack.vectors[output], other.vectors[output], rtol=rtol, atol=rtol
            )


def test_packs_that_do_not_fit_are_split_and_the_limit_is_kept(embed):
    expected, _, _ = embed()
    packs, passes, limits = embed(holds=50)
    assert_same_vectors(packs, expected)
    assert limits == [32]
    assert passes[0] > 50
    assert max(passes[1:]) <= 50  # learnt once; single records may exceed the limit
    assert any(pack.statistics.splits > 1 for pack in packs)
    assert sum(len(pack.rows) for pack in packs) == len(SEQUENCES)


def test_a_remembered_limit_spares_the_failure(embed):
    expected, _, _ = embed()
    packs, passes, limits = embed(holds=50, limit=32)
    assert_same_vectors(packs, expected)
    assert max(passes) <= 50
    assert limits == []


def test_a_limit_that_is_still_too_high_falls_further(embed):
    short = ["ACDEF"[: 1 + n % 5] for n in range(60)]
    packs, passes, limits = embed(holds=20, sequences=short)
    assert len(limits) > 1
    assert limits[-1] <= 20
    assert max(passes[-20:]) <= 20
    assert_same_vectors(packs, embed(sequences=short)[0])


TOO_LONG = [row for row, sequence in enumerate(SEQUENCES) if len(sequence) + 2 == LONGEST]


def test_a_record_that_does_not_fit_alone_goes_to_the_cpu_and_is_flagged(embed):
    # The job's device is a GPU in name: what it does not hold is computed on the CPU.
    packs, _, _ = embed(holds=LONGEST - 1, device=torch.device("cuda"))
    assert_same_vectors(packs, embed()[0])
    flagged = sorted(int(row) for pack in packs for row in pack.float32_rows)
    assert flagged == TOO_LONG


def test_a_record_that_does_not_fit_on_the_cpu_is_reported_by_name(embed):
    message = rf"record ({'|'.join(str(row + 1) for row in TOO_LONG)}): 42 tokens do not fit"
    with pytest.raises(Fault, match=message):
        embed(holds=LONGEST - 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_pack_with_nan_is_computed_in_float32_and_flagged(embed, dtype):
    expected, _, _ = embed()
    packs, _, _ = embed(dtype, nan_length=len(SEQUENCES[12]) + 2)
    bad = {row for row, s in enumerate(SEQUENCES) if len(s) == len(SEQUENCES[12])}
    again = [pack for pack in packs if bad & set(pack.rows.tolist())]
    assert again
    for pack in packs:
        flagged = pack.rows.tolist() if pack in again else []
        assert pack.float32_rows.tolist() == flagged
        assert pack.statistics.float32_records == len(flagged)
    numbers = {pack.statistics.pack for pack in again}
    redone = [pack for pack in expected if pack.statistics.pack in numbers]
    assert_same_vectors(again, redone, rtol=1e-6)
    assert_same_vectors(packs, expected, rtol=0.2)


def test_nan_in_float32_too_is_reported_by_name(embed, monkeypatch):
    monkeypatch.setattr(
        "packedesm.embedding.fallback.pool",
        lambda hidden, batch, outputs, dtype: {o: torch.full((1, 1), torch.nan) for o in outputs},
    )
    message = r"record \d+: its vectors hold NaN or infinity, in float32 too"
    with pytest.raises(Fault, match=message):
        embed("float16", nan_length=len(SEQUENCES[12]) + 2)


def test_which_records_are_not_finite():
    mean = np.zeros((3, 2), np.float16)
    mean[1, 0] = np.inf
    residue = np.zeros((6, 2), np.float16)
    residue[5, 1] = np.nan
    bad = not_finite({"mean": mean, "residue": residue}, np.array([1, 2, 3]))
    assert bad.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert out_of_memory(error) is expected
