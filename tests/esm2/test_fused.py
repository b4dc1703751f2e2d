"""Which fused kernels are chosen, and what they compute on a GPU where one is.

What they compute is tested without one in test_fused_interpreted.py and test_fused_compiled.py.
"""

import importlib.util
import json

import pytest
import torch

from packedesm.esm2 import fused
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.esm2.steps import FURTHEST, KERNELS, phases, rotate

CUDA = torch.device("cuda")
GEOMETRY = Geometry(layers=2, width=320, heads=20)
MANY = 24_846

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
on_every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.mark.gpu
@needs_gpu
@on_every_dtype
def test_the_kernels_are_as_exact_as_torch_on_a_gpu(dtype):
    from tests.esm2 import fused_checks as checks

    torch.manual_seed(1)
    for heads, head_dim, tokens in checks.SHAPES:
        checks.check_rotate(heads, head_dim, 301 * tokens, dtype, "cuda")
        checks.check_add_norm(heads * head_dim, 301 * tokens, dtype, "cuda")
        checks.check_embed(heads * head_dim, dtype, "cuda")
        for output in (torch.float32, torch.float16):
            checks.check_pool(heads * head_dim, dtype, output, "cuda")
    checks.check_rotate(20, 64, MANY, dtype, "cuda")
    checks.check_add_norm(1280, MANY, dtype, "cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_product_and_gelu_are_as_exact_as_torch_on_a_gpu(dtype):
    from tests.esm2 import fused_checks as checks

    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("product and GELU as one kernel need a GPU of compute capability 8.0")
    torch.manual_seed(1)
    for geometry in MODELS.values():
        checks.check_linear_gelu(geometry.width, 4 * geometry.width, 1000, dtype, "cuda")
    checks.check_linear_gelu(1280, 5120, MANY, dtype, "cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", MODELS)
@on_every_dtype
def test_a_gpu_takes_them_for_every_model(name, dtype, tell, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = select_kernels(MODELS[name], dtype, CUDA)
    assert chosen.name in ("triton", "triton+gelu"), chosen.reason
    tell(f"{name}, {dtype}: {chosen.name}, {chosen.reason}")


def test_a_cpu_does_not():
    chosen = select_kernels(GEOMETRY, torch.float32, torch.device("cpu"))
    assert chosen == ("torch", "Triton's kernels are for a GPU")


def test_without_triton_torch_does_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    chosen = select_kernels(GEOMETRY, torch.float16, CUDA)
    assert chosen == ("torch", "Triton is not installed")


class MadeUpGPU:
    """Says which kernels agree with their twins, and how long product and GELU take."""

    def __init__(self, monkeypatch, cache):
        self.name, self.capability = "NVIDIA A", (8, 0)
        self.wrong: dict[str, Exception | None] = {}
        self.milliseconds: dict[str, float] | Exception = {"one": 1.0, "two": 2.0}
        self.tried: list[str] = []
        self.timed = 0
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: self.capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: self.name)
        monkeypatch.setattr(fused, "agrees", self._agrees)
        monkeypatch.setattr(fused, "_milliseconds", self._time)

    def _agrees(self, name, *_given) -> bool:
        self.tried.append(name)
        if isinstance(error := self.wrong.get(name), Exception):
            raise error
        return name not in self.wrong

    def _time(self, *_given) -> dict[str, float]:
        self.timed += 1
        if isinstance(self.milliseconds, Exception):
            raise self.milliseconds
        return self.milliseconds

    def select(self, dtype=torch.float16, demanded=None):
        return select_kernels(GEOMETRY, dtype, CUDA, demanded)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    return MadeUpGPU(monkeypatch, tmp_path / "cache")


@pytest.mark.parametrize("kernel", ["rotate_", "add_norm", "embed", "pool"])
@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (RuntimeError("Failed to find C compiler.\nmore"), "does not work here (Failed to find"),
        (None, "computes something else here"),
    ],
)
def test_without_a_kernel_that_works_torch_does_it(gpu, kernel, trial, reason):
    gpu.wrong = {kernel: trial}
    chosen = gpu.select()
    assert chosen.name == "torch" and not gpu.timed
    assert f"{kernel} {reason}" in chosen.reason and "more" not in chosen.reason


def test_what_is_faster_is_chosen_and_its_time_told(gpu):
    measured = "measured: 1 ms for product and GELU as one kernel, 2 as two"
    assert gpu.select() == ("triton+gelu", f"chosen automatically on a GPU; {measured}")
    gpu.name, gpu.milliseconds = "NVIDIA B", {"one": 3.14159, "two": 2.5}
    chosen = gpu.select()
    assert chosen.name == "triton" and "3.14 ms for product" in chosen.reason


def test_all_jobs_on_one_kind_of_gpu_choose_alike(gpu):
    first = gpu.select()
    gpu.milliseconds = {"one": 2.0, "two": 1.0}
    assert gpu.select() == first and gpu.timed == 1
    assert gpu.select(torch.bfloat16).name == "triton" and gpu.timed == 2


@pytest.mark.parametrize(
    "entry", ['"x"', "{}", '{"one": "x"}', '{"one": 1}', '{"one": "x", "two": 1}', '{"one": -1}']
)
def test_a_damaged_time_is_measured_again(gpu, tmp_path, entry):
    path = tmp_path / "cache" / "packedesm" / "gelu.json"
    first = gpu.select()
    (key,) = (kept := json.loads(path.read_text()))
    path.write_text(f"{{{json.dumps(key)}: {entry}}}")
    assert gpu.select() == first and gpu.timed == 2
    assert json.loads(path.read_text()) == kept


def test_a_kernel_that_was_faster_elsewhere_is_tried_here_too(gpu):
    gpu.select()
    gpu.wrong = {"linear_gelu": None}
    chosen = gpu.select()
    assert chosen.name == "triton" and "linear_gelu computes something else" in chosen.reason


def test_a_kernel_that_was_slower_is_not_compiled_again(gpu):
    gpu.milliseconds = {"one": 2.0, "two": 1.0}
    gpu.select()
    gpu.tried.clear()
    assert gpu.select().name == "triton" and "linear_gelu" not in gpu.tried


@pytest.mark.parametrize(
    ("wrong", "capability", "dtype", "reason"),
    [
        ({"linear_gelu": None}, (8, 0), torch.float16, "computes something else here"),
        ({"linear_gelu": RuntimeError("no room")}, (8, 0), torch.float16, "(no room)"),
        ({}, (7, 5), torch.float16, "needs a GPU of compute capability 8.0"),
        ({}, (8, 0), torch.float32, "is for half precision"),
    ],
)
def test_without_product_and_gelu_the_others_are_used(gpu, wrong, capability, dtype, reason):
    gpu.wrong, gpu.capability = wrong, capability
    chosen = gpu.select(dtype)
    assert chosen.name == "triton" and not gpu.timed
    assert f"linear_gelu {reason}" in chosen.reason.replace("does not work here ", "")


def test_a_measurement_that_fails_is_made_again_by_the_next_job(gpu):
    gpu.milliseconds = torch.OutOfMemoryError("CUDA out of memory.")
    chosen = gpu.select()
    assert chosen.name == "triton" and "could not be timed (CUDA out of memory.)" in chosen.reason
    gpu.milliseconds = {"one": 1.0, "two": 2.0}
    assert gpu.select().name == "triton+gelu"


@pytest.mark.parametrize(
    ("demanded", "tried"),
    [
        ("torch", []),
        ("triton", ["rotate_", "add_norm", "embed", "pool"]),
        ("triton+gelu", ["rotate_", "add_norm", "embed", "pool", "linear_gelu"]),
    ],
)
def test_what_an_earlier_attempt_chose_is_tried_and_not_measured(gpu, demanded, tried):
    chosen = gpu.select(demanded=demanded)
    assert chosen == (demanded, "chosen by an earlier attempt")
    assert sorted(gpu.tried) == sorted(tried) and not gpu.timed


def test_what_an_earlier_attempt_chose_is_refused_where_it_does_not_work(gpu):
    gpu.capability = (7, 5)
    chosen = gpu.select(demanded="triton+gelu")
    assert chosen.name == "torch" and "compute capability 8.0" in chosen.reason


@pytest.mark.parametrize("name", KERNELS)
def test_a_model_tells_which_kernels_it_uses(name):
    model = PackedESM2(GEOMETRY)
    assert model.kernels == "torch"
    model.use_kernels(name)
    assert model.kernels == name


def test_positions_beyond_what_the_kernel_is_made_for_are_rotated_by_torch():
    model = PackedESM2(GEOMETRY)
    model.frequency_bits = torch.ones(GEOMETRY.head_dim // 2).view(torch.int32)
    positions = torch.tensor([0, FURTHEST, FURTHEST + 1])
    qkv = torch.randn(3, 3, GEOMETRY.heads, GEOMETRY.head_dim)
    expected = rotate(qkv[:, :2].clone(), phases(positions, model.frequencies))
    model.use_kernels("triton")
    split, _ = model._rotation(positions, FURTHEST + 2, "sdpa")
    assert torch.equal(torch.stack([*split(qkv)[:2]], 1), expected)
