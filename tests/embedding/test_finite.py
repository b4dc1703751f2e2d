"""Flags of finite records: what the device finds is what the host would."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from packedesm.embedding.finite import finite_records
from packedesm.embedding.pack import not_finite

WIDTH = 33
NASTY = [
    *(torch.nan, -torch.nan, torch.inf, -torch.inf),
    *(65504.0, -65504.0, 65519.9, 65520.0, -65520.0, 1e5, 3.4e38, 1e-45, -0.0),
]


def vectors_with(places: int, dtype: torch.dtype, seed: int):
    """Return the vectors of a pack with so many nasty numbers, and the records' residues."""
    rng = np.random.default_rng(seed)
    residues = rng.integers(1, 9, rng.integers(1, 12))
    vectors = {}
    for output in ("mean", "cls", "max", "residue"):
        lines = residues.sum() if output == "residue" else len(residues)
        array = rng.standard_normal((lines, WIDTH)).astype(np.float32)
        for _ in range(places):
            array[rng.integers(lines), rng.integers(WIDTH)] = rng.choice(NASTY)
        vectors[output] = torch.from_numpy(array).to(dtype)
    return vectors, residues


def found_by(vectors, residues, device="cpu"):
    moved = {output: tensor.to(device) for output, tensor in vectors.items()}
    lengths = torch.from_numpy(residues.astype(np.int32)).to(device)
    return np.flatnonzero(~finite_records(moved, lengths).cpu().numpy())


def check(device: str, dtype: torch.dtype) -> None:
    seen = set()
    for seed in range(200):
        vectors, residues = vectors_with(seed % 3, dtype, seed)
        for outputs in (["mean"], ["residue"], list(vectors)):
            kept = {output: vectors[output] for output in outputs}
            expected = not_finite({o: x.numpy() for o, x in kept.items()}, residues)
            assert found_by(kept, residues, device).tolist() == expected.tolist()
            seen.add(len(expected))
    assert len(seen) > 3  # packs without and with several


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_device_decides_as_the_host_does(dtype):
    check("cpu", dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_real_gpu_decides_as_the_host_does(dtype):
    check("cuda", dtype)


@pytest.mark.parametrize("place", range(WIDTH))
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_one_number_of_a_row_is_enough_wherever_it_stands(place, number):
    vectors = torch.zeros(3, WIDTH, dtype=torch.float16)
    vectors[1, place] = number
    assert found_by({"mean": vectors}, np.array([1, 1, 1])).tolist() == [1]
    assert found_by({"residue": vectors}, np.array([1, 2])).tolist() == [1]


def test_what_only_the_files_number_format_cannot_hold_counts():
    vectors = torch.tensor([[65519.0], [65520.0]])  # the second rounds to infinity
    assert found_by({"mean": vectors}, np.array([1, 1])).tolist() == []
    assert found_by({"mean": vectors.half()}, np.array([1, 1])).tolist() == [1]


def test_the_host_does_not_wait_for_it(fake_cuda):
    with FakeTensorMode():
        vectors = {
            "mean": torch.empty(4, WIDTH, dtype=torch.float16, device=fake_cuda),
            "residue": torch.empty(90, WIDTH, dtype=torch.float16, device=fake_cuda),
        }
        found = finite_records(vectors, torch.empty(4, dtype=torch.int32, device=fake_cuda))
        assert found.shape == (4,)
        assert found.dtype == torch.bool
        assert found.device == fake_cuda
