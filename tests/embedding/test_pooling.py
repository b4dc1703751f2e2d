import numpy as np
import pytest
import torch

from packedesm.embedding.pooling import pool
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein

OUTPUTS = ["mean", "cls", "max", "residue"]


def batch_of(*records):
    proteins = [
        Protein(row, sequence, spans or [(0, len(sequence))])
        for row, (sequence, spans) in enumerate(records)
    ]
    return VarlenCollator()(proteins)


def test_pools_take_residues_only_and_cls_takes_cls():
    batch = batch_of((b"MK", None), (b"A", None))
    hidden = torch.tensor([[100.0], [1], [3], [900], [200], [-5], [900]])
    pooled = pool(hidden, batch, OUTPUTS, "float32")
    assert pooled["mean"].tolist() == [[2], [-5]]
    assert pooled["max"].tolist() == [[3], [-5]]
    assert pooled["cls"].tolist() == [[100], [200]]
    assert pooled["residue"].tolist() == [[1], [3], [-5]]


def test_overlapping_windows_are_averaged_per_residue_before_pooling():
    batch = batch_of((b"MKV", [(0, 2), (1, 3)]))
    hidden = torch.tensor([[10.0], [1], [2], [99], [20], [6], [3], [99]])
    pooled = pool(hidden, batch, OUTPUTS, "float32")
    assert pooled["residue"].tolist() == [[1], [4], [3]]
    assert pooled["mean"].item() == pytest.approx(8 / 3)
    assert pooled["max"].item() == 4
    assert pooled["cls"].item() == 15


def test_where_three_windows_overlap_every_run_gives_the_same_bits():
    """Of many threads each adds what it has, so that one order is no matter of course."""
    spans = [(start, start + 1000) for start in range(0, 1001, 100)]
    batch = batch_of((b"A" * 2000, spans), (b"M", None))
    hidden = torch.randn(sum(batch.lengths), 64)
    expected = torch.zeros(2000, 64)
    for (start, end), window in zip(spans, hidden.split(batch.lengths), strict=False):
        expected[start:end] += window[1:-1]
    times = torch.tensor([sum(start <= n < end for start, end in spans) for n in range(2000)])
    expected /= times[:, None]
    for _ in range(5):
        assert torch.equal(pool(hidden, batch, ["residue"], "float32")["residue"][:2000], expected)


def test_windows_are_pooled_by_torch_where_kernels_pool_the_rest():
    batch = batch_of((b"MKV", [(0, 2), (1, 3)]), (b"A", None))
    hidden = torch.randn(11, 3)
    pooled = [pool(hidden, batch, OUTPUTS, "float32", fused=fused) for fused in (False, True)]
    assert all(torch.equal(pooled[0][output], pooled[1][output]) for output in OUTPUTS)


def test_half_precision_is_summed_in_float32():
    # 2,000 ones after 4,096 ones: float16 sums would stall at 2,048, bfloat16's at 256.
    batch = batch_of((b"A" * 6096, None))
    hidden = torch.ones(6098, 2, dtype=torch.float16)
    assert pool(hidden, batch, ["mean"], "float32")["mean"].tolist() == [[1, 1]]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_results_have_the_asked_number_format(dtype):
    batch = batch_of((b"MK", None))
    pooled = pool(torch.randn(4, 8), batch, OUTPUTS, dtype)
    assert {tensor.dtype for tensor in pooled.values()} == {getattr(torch, dtype)}


def test_random_packs_agree_with_a_loop_over_proteins():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 20)
    batch = batch_of(*((b"A" * n, None) for n in lengths))
    hidden = torch.randn(sum(batch.lengths), 16)
    pooled = pool(hidden, batch, OUTPUTS, "float32")
    for i, (start, end) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        one = hidden[start:end].double()
        torch.testing.assert_close(pooled["mean"][i].double(), one[1:-1].mean(0))
        assert torch.equal(pooled["max"][i].double(), one[1:-1].amax(0))
        assert torch.equal(pooled["cls"][i].double(), one[0])
