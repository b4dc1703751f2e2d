"""Attention within each protein, against a textbook softmax in float64, and backend choice."""

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from packedesm.errors import UserError
from packedesm.esm2 import attention, attention_needs
from packedesm.esm2.attention import (
    BACKENDS,
    Selection,
    Sequences,
    attend,
    select_backend,
    unavailable_reason,
    varlen_attention,
)
from packedesm.esm2.torch_operators import EFFICIENT, FLASH
from tests.workflow import ROOT

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
CHANGED = replace(FLASH, name="_attention_of_old")  # that torch does not have
pytestmark = pytest.mark.cpu

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")


def fitting_or_skip(backend, dtype):
    """Return the sizes of heads that the backend takes on this GPU, of those that models have."""
    reasons = {x: unavailable_reason(backend, CUDA, dtype, x) for x in (16, 24, 32, 64, 128)}
    if reasons[64]:
        pytest.skip(f"{backend}: {reasons[64]}")
    return [head_dim for head_dim, reason in reasons.items() if reason is None]


def packed(lengths, heads=2, head_dim=16, dtype=torch.float32, device="cpu"):
    """Return q, k, v of a pack, and where its sequences begin."""
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (3, sum(lengths), heads, head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(device, dtype)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return q, k, v, cu_seqlens.to(device)


def textbook(q, k, v, lengths):
    """Attention of each sequence by itself in float64, written out."""
    parts = []
    for sequence in zip(*(x.double().cpu().split(lengths) for x in (q, k, v)), strict=True):
        q1, k1, v1 = (x.transpose(0, 1) for x in sequence)  # (heads, length, head_dim)
        scores = q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5
        parts.append((scores.softmax(-1) @ v1).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "lengths", [[5], [3, 1, 4], [7, 7, 7], [2, 9, 9, 2, 1, 1], [1], [130, 65, 65]], ids=str
)
def test_sdpa_equals_textbook_attention_within_each_sequence(lengths):
    q, k, v, cu_seqlens = packed(lengths)
    found = attend("sdpa", q, k, v, Sequences(cu_seqlens, max(lengths), lengths))
    assert found.shape == q.shape
    torch.testing.assert_close(found.double(), textbook(q, k, v, lengths), atol=2e-6, rtol=2e-6)


def test_lengths_are_taken_from_cu_seqlens_when_not_given():
    q, k, v, cu_seqlens = packed([4, 6, 6])
    given = attend("sdpa", q, k, v, Sequences(cu_seqlens, 6, [4, 6, 6]))
    assert torch.equal(varlen_attention(q, k, v, cu_seqlens, 6), given)


def test_views_into_one_projection_give_what_copies_give():
    qkv = torch.randn(12, 3, 2, 16)
    cu_seqlens = torch.tensor([0, 5, 12], dtype=torch.int32)
    views = varlen_attention(*qkv.unbind(1), cu_seqlens, 7)
    copies = varlen_attention(*(x.contiguous() for x in qkv.unbind(1)), cu_seqlens, 7)
    assert torch.equal(views, copies)


def test_lengths_that_do_not_cover_the_pack_are_refused():
    q, k, v, cu_seqlens = packed([4, 6])
    with pytest.raises(ValueError, match=r"9.*10"):
        attend("sdpa", q, k, v, Sequences(cu_seqlens, 6, [4, 5]))


@pytest.mark.parametrize("name", ["torch_varlen", "memory_efficient", "flash_attn", "fa3"])
def test_a_named_gpu_backend_on_a_cpu_is_an_error(name):
    with pytest.raises(UserError, match=rf"{name}.*NVIDIA GPU.*sdpa"):
        select_backend(name, CPU, torch.bfloat16, 64)


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'flash'.*torch_varlen"):
        select_backend("flash", CPU, torch.float32, 64)


@pytest.fixture
def hopper(monkeypatch):
    """Let torch report a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of made-up installed libraries."""
    for name in ("flash_attn", "fa3_fwd_interface"):
        if importlib.util.find_spec(name):
            pytest.skip(f"{name} is really installed")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("flash_attn", "fa3_fwd_interface"):
        sys.modules.pop(name, None)


def test_auto_on_a_gpu_uses_torchs_own_kernel(hopper):
    assert select_backend("auto", CUDA, torch.float16, 64).name == "torch_varlen"


def test_auto_on_a_gpu_in_float32_launches_once_for_all_lengths(hopper):
    assert select_backend("auto", CUDA, torch.float32, 64).name == "memory_efficient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_auto_on_a_gpu_is_sdpa_where_no_other_kernel_fits(hopper, dtype):
    assert select_backend("auto", CUDA, dtype, 20).name == "sdpa"


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((7, 5), torch.float16, "memory_efficient"),
        ((7, 5), torch.float32, "memory_efficient"),
        ((7, 5), torch.bfloat16, "sdpa"),
        ((8, 0), torch.bfloat16, "torch_varlen"),
        ((12, 0), torch.float32, "memory_efficient"),
        ((13, 0), torch.float32, "sdpa"),
    ],
)
def test_auto_knows_which_gpus_the_kernels_are_for(monkeypatch, capability, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert select_backend("auto", CUDA, dtype, 64).name == expected


def test_the_configuration_takes_every_backend():
    schema = ROOT / "src" / "packedesm" / "config.schema.yaml"
    known = yaml.safe_load(schema.read_text())["properties"]["attention"]["enum"]
    assert sorted(known) == sorted(["auto", *BACKENDS])


@pytest.mark.parametrize("lengths", [None, [2, 3, 1, 4, 4, 2, 3]])
def test_more_sequences_than_one_launch_takes_are_attended_in_several(monkeypatch, lengths):
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 3)
    q, k, v, cu_seqlens = packed([2, 3, 1, 4, 4, 2, 3])
    launched = []

    def launch(q, k, v, cu_seqlens, max_seqlen):
        launched.append(cu_seqlens.tolist())
        return varlen_attention(q, k, v, cu_seqlens, max_seqlen)

    found = attention._in_calls(launch, q, k, v, Sequences(cu_seqlens, 4, lengths))
    assert launched == [[0, 2, 5, 6], [0, 4, 8, 10], [0, 3]]
    torch.testing.assert_close(found, varlen_attention(q, k, v, cu_seqlens, 4))


def test_so_are_more_neighbours_of_one_length_by_sdpa(monkeypatch):
    calls = []

    def call(q, k, v):
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    q, k, v, cu_seqlens = packed([5, 2, 2, 2, 2, 2, 2, 2, 4])
    expected = varlen_attention(q, k, v, cu_seqlens, 5)
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 3)
    monkeypatch.setattr(attention, "F", SimpleNamespace(scaled_dot_product_attention=call))
    assert torch.equal(varlen_attention(q, k, v, cu_seqlens, 5), expected)
    assert [(shape[0], shape[2]) for shape in calls] == [(1, 5), (3, 2), (3, 2), (1, 2), (1, 4)]


@pytest.mark.parametrize("operator", [FLASH, EFFICIENT], ids=lambda operator: operator.name)
def test_torch_has_the_operators_and_they_are_known_by_their_arguments(operator):
    """A release of torch that changes them is to be seen here, not on a user's GPU."""
    assert operator.is_as_expected
    fixed = dict(operator.fixed)
    del fixed["dropout_p"]
    assert not replace(operator, fixed=fixed).is_as_expected
    assert not replace(operator, fixed=operator.fixed | {"sink": None}).is_as_expected
    assert not replace(operator, longest=("max_seqlen", "max_k")).is_as_expected
    assert not replace(operator, name="_attention_of_old").is_as_expected


def test_an_operator_that_torch_has_changed_is_not_used(hopper, monkeypatch):
    monkeypatch.setattr(attention_needs, "EFFICIENT", CHANGED)
    with pytest.raises(UserError, match=r"torch .* has changed its operator _attention_of_old"):
        select_backend("memory_efficient", CUDA, torch.float32, 64)
    chosen = select_backend("auto", CUDA, torch.float32, 64)
    assert chosen.name == "sdpa" and "has changed its operator" in chosen.reason


def test_auto_prefers_an_installed_flash_attention_3_on_hopper_in_bfloat16_only(hopper, site):
    (site / "fa3_fwd_interface.py").write_text("def flash_attn_varlen_func(): ...\n")
    assert select_backend("auto", CUDA, torch.bfloat16, 64).name == "fa3"
    assert select_backend("auto", CUDA, torch.float16, 64).name == "torch_varlen"
    assert select_backend("auto", CUDA, torch.bfloat16, 32).name == "torch_varlen"


@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
def test_flash_attention_3_is_refused_where_the_gpu_is_not_hopper(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(UserError, match=f"compute capability {capability[0]}"):
        select_backend("fa3", CUDA, torch.bfloat16, 64)


def test_a_named_backend_that_is_not_installed_says_what_to_install(hopper, site):
    with pytest.raises(UserError, match=r"flash_attn is not installed.*pip install"):
        select_backend("flash_attn", CUDA, torch.bfloat16, 64)


def test_a_flash_attn_folder_left_by_another_package_does_not_count_as_installed(hopper, site):
    (site / "flash_attn" / "cute").mkdir(parents=True)
    with pytest.raises(UserError, match="flash_attn is not installed"):
        select_backend("flash_attn", CUDA, torch.bfloat16, 64)


def test_a_backend_that_is_installed_and_broken_is_an_error_even_under_auto(hopper, site):
    (site / "fa3_fwd_interface.py").write_text("raise ImportError('undefined symbol: _Zfoo')\n")
    with pytest.raises(UserError, match=r"fa3_fwd_interface.*undefined symbol: _Zfoo"):
        select_backend("auto", CUDA, torch.bfloat16, 64)


def test_a_named_backend_that_fits_is_kept(hopper):
    chosen = select_backend("torch_varlen", CUDA, torch.bfloat16, 64)
    assert chosen == Selection("torch_varlen", "named in the configuration")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_gpu_backend_equals_textbook_attention(backend, dtype):
    """Also of views into one projection, whose memory the kernels then read with strides."""
    lengths = [300, 300, 1, 1024, 17]
    for head_dim in fitting_or_skip(backend, dtype):
        q, k, v, cu_seqlens = packed(lengths, 4, head_dim, dtype, "cuda")
        views = torch.stack([q, k, v], 1).unbind(1)
        expected = textbook(q, k, v, lengths)
        for qkv in ((q, k, v), views):
            found = attend(backend, *qkv, Sequences(cu_seqlens, 1024, lengths))
            distance = (found.double().cpu() - expected).norm() / expected.norm()
            # Rounding of the output alone is 2⁻²⁴, 2⁻¹² (float16) and 2⁻⁹ (bfloat16) relative.
            bars = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
            assert distance <= bars[dtype], head_dim


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[1], [2000], [2] * 70_000 + [3] * 70_000], ids=len)
def test_every_gpu_backend_takes_one_sequence_and_more_than_a_launch_does(backend, lengths):
    fitting_or_skip(backend, torch.bfloat16)
    q, k, v, cu_seqlens = packed(lengths, 1, 64, torch.bfloat16, "cuda")
    found = attend(backend, q, k, v, Sequences(cu_seqlens, max(lengths), lengths))
    on_host = Sequences(cu_seqlens.cpu(), max(lengths), lengths)
    expected = attend("sdpa", *(x.float().cpu() for x in (q, k, v)), on_host)
    assert (found.float().cpu() - expected).norm() <= 8e-3 * expected.norm()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["torch_varlen", "memory_efficient"])
def test_gradients_on_a_gpu_equal_those_of_sdpa(backend):
    fitting_or_skip(backend, torch.float16)
    lengths = [40, 100, 7]
    q, k, v, cu_seqlens = packed(lengths, 2, 64, torch.float16, "cuda")
    towards = torch.randn_like(q)
    expected, found = (
        torch.autograd.grad(
            varlen_attention(*leaves, cu_seqlens, max(lengths), backend=name), leaves, towards
        )
        for name in ("sdpa", backend)
        for leaves in [[x.clone().requires_grad_() for x in (q, k, v)]]
    )
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).float().norm() <= 5e-3 * reference.float().norm()
