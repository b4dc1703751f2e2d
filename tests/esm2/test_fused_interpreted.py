"""The fused kernels as Triton's interpreter computes them on a CPU: by make test-kernels.

Not in bfloat16: the interpreter cuts numbers off where a GPU rounds them.
"""

import os
from functools import partial
from inspect import signature

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from packedesm.alphabet import MASK
from packedesm.embedding.pooling import pool
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.kernel_trials import TRIALS, agrees
from packedesm.esm2.model import PackedESM2
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from tests.fake_cuda import kernels as stand_ins

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif("PACKEDESM_TEST_KERNELS" not in os.environ, reason="by make test-kernels"),
]

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16)
GEOMETRY = Geometry(layers=2, width=48, heads=2)  # heads of 24, no power of two
SEQUENCES = (b"MKVAGLAQ", b"A", b"MKLLE", b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ")
OUTPUTS = ("mean", "max", "cls", "residue")


@pytest.fixture(scope="module", autouse=True)
def checks():
    """The checks, with kernels that are interpreted: Triton reads that when it is imported."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    from tests.esm2 import fused_checks

    torch.manual_seed(1)
    return fused_checks


@pytest.mark.parametrize("dtype", DTYPES)
def test_q_and_k_are_rotated_as_exactly_as_by_torch(checks, dtype):
    for heads, head_dim, tokens in checks.SHAPES:
        checks.check_rotate(heads, head_dim, tokens, dtype, "cpu")
    checks.check_rotate(2, 4, 300, dtype, "cpu")  # more tokens than one program has


def test_sines_and_cosines_are_right_at_every_position(checks):
    """Each of a long protein and many further ones, within 0.8 units in the last place."""
    positions = torch.cat([torch.arange(checks.LONGEST), torch.arange(399_000, checks.FURTHEST)])
    qkv = torch.zeros(len(positions), 3, 1, 8)
    qkv[:, :2, :, ::2] = 1  # rotated, 1 becomes cosine and sine
    frequencies = torch.tensor([1.0, 0.1, 0.5 * torch.pi / 500, 1e-4])
    checks.triton_kernels.rotate_(qkv, positions, frequencies)
    angles = (positions.float()[:, None] * frequencies).double()
    exact = torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)
    assert (qkv[:, 0, 0] - exact).abs().max() < 0.8 * 2**-24
    assert torch.equal(qkv[:, 0], qkv[:, 1]) and not qkv[:, 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_layer_norms_are_as_exact_as_torch_s(checks, dtype):
    for heads, head_dim, tokens in checks.SHAPES:
        checks.check_add_norm(heads * head_dim, tokens, dtype, "cpu")
    checks.check_add_norm(48, 1, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_and_gelu_are_as_exact_as_torch_s(checks, dtype):
    for heads, head_dim, tokens in checks.SHAPES:
        checks.check_linear_gelu(heads * head_dim, 200, tokens, dtype, "cpu")
    for sizes in ((40, 160, 1), (40, 160, 300), (32, 128, 128), (24, 1300, 300)):
        checks.check_linear_gelu(*sizes, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # divided by 0 where all is masked
def test_token_dropout_is_as_exact_as_torch_s(checks, dtype):
    checks.check_embed(130, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", DTYPES)
def test_pooling_is_as_exact_as_torch_s(checks, dtype, output):
    checks.check_pool(130, dtype, output, "cpu")


def test_trials_pass_and_notice_a_kernel_that_computes_something_else(checks, monkeypatch):
    for name in TRIALS:
        assert agrees(name, GEOMETRY, torch.float16, CPU), name
        real = getattr(checks.triton_kernels, name)
        monkeypatch.setattr(checks.triton_kernels, name, partial(_slightly_wrong, real))
        assert not agrees(name, GEOMETRY, torch.float16, CPU), name


def _slightly_wrong(kernel, first, *others):
    found = kernel(first, *others)
    (first if found is None else found).view(-1)[0] += 0.1
    return found


@pytest.mark.parametrize("name", TRIALS)
def test_stand_ins_declare_what_the_kernels_do(checks, name, monkeypatch):
    """Parameters, what is written to, and what is made: so counts on fake tensors are right."""
    real, stand_in = getattr(checks.triton_kernels, name), getattr(stand_ins, name)
    calls = []

    def recorded(*given, **named):
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in given]
        calls.append((before, given, named, made := real(*given, **named)))
        return made

    monkeypatch.setattr(checks.triton_kernels, name, recorded)
    assert agrees(name, GEOMETRY, torch.float16, CPU)
    assert signature(real) == signature(stand_in)
    for before, given, named, made in calls:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, Operators() as seen:
            fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
            declared = stand_in(*fake, **named)
        (operator,) = seen.operators
        written = [x.alias_info is not None for x in operator._schema.arguments]
        tensors = [place for place, x in enumerate(given) if isinstance(x, torch.Tensor)]
        changed = [not torch.equal(before[place], given[place]) for place in tensors]
        assert changed == written[: len(changed)] and not any(written[len(changed) :])
        if made is not None:
            assert (made.shape, made.dtype) == (declared.shape, declared.dtype)


class Operators(TorchDispatchMode):
    """The operators that are called meanwhile and are no views."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view and operator.namespace != "prim":  # what asks for the device
            self.operators.append(operator)
        return operator(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_random_checkpoint(path, GEOMETRY, seed=1)
    return load_state(path)[1]


@pytest.mark.parametrize(
    ("kernels", "attention"), [("triton", "varlen_cpu"), ("triton+gelu", "sdpa")]
)
def test_a_forward_pass_and_pooling_with_all_kernels_are_as_exact_as_without(
    checks, state, kernels, attention
):
    proteins = [Protein(row, s, [(0, len(s))]) for row, s in enumerate(SEQUENCES)]
    batch = VarlenCollator()(proteins)
    batch.input_ids[[4, 17, 18]] = MASK

    def embed(kernels: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        model = PackedESM2.from_fair_esm(state, GEOMETRY, dtype)
        model.use_kernels(kernels)
        backend = attention if dtype == torch.float32 else "sdpa"
        hidden = model.forward_packed(**batch.inputs, attention=backend)
        return pool(hidden, batch, OUTPUTS, "float32", fused=model.fused)

    exact = embed("torch", torch.float32)
    found, half = embed(kernels, torch.float32), embed(kernels, torch.float16)
    twin = embed("torch", torch.float16)
    assert found.keys() == exact.keys()
    for output in OUTPUTS:
        judge, relative = exact[output].double(), checks.relative
        assert relative(found[output], judge) < 2e-6
        assert relative(half[output], judge) <= 1.5 * relative(twin[output], judge)
