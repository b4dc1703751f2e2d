"""Attention within each protein, against a textbook softmax in float64, and backend choice."""

import importlib.util
import sys

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.attention import (
    BACKENDS,
    Selection,
    Sequences,
    attend,
    select_backend,
    varlen_attention,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.cpu


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


@pytest.mark.parametrize("name", ["torch_varlen", "flash_attn", "fa3"])
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


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.float16, 20)])
def test_auto_on_a_gpu_is_sdpa_where_no_flash_kernel_fits(hopper, dtype, head_dim):
    assert select_backend("auto", CUDA, dtype, head_dim).name == "sdpa"


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_gpu_backend_equals_textbook_attention(backend, dtype):
    try:
        select_backend(backend, CUDA, dtype, 64)
    except UserError as error:
        pytest.skip(str(error))
    lengths = [300, 300, 1, 1024, 17]
    q, k, v, cu_seqlens = packed(lengths, heads=4, head_dim=64, dtype=dtype, device="cuda")
    found = attend(backend, q, k, v, Sequences(cu_seqlens, 1024, lengths))
    expected = textbook(q, k, v, lengths)
    distance = (found.double().cpu() - expected).norm() / expected.norm()
    # Rounding of the output alone is 2⁻¹² (float16) and 2⁻⁹ (bfloat16) relative.
    assert distance <= (1e-3 if dtype == torch.float16 else 8e-3)
