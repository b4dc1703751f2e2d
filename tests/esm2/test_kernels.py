"""Our own CPU kernels, as compiled for each kind of CPU, against textbook formulas.

Every test runs on every CPU, in each number format: by the kernel, or where a CPU has none for it
by what ``auto`` chooses instead.
"""

import os
from pathlib import Path

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2 import kernels
from packedesm.esm2.attention import (
    WITH_ROTARY,
    Sequences,
    attend,
    select_backend,
    varlen_attention,
)
from packedesm.esm2.steps import rotate
from tests.esm2.test_attention import packed, textbook

CPU = torch.device("cpu")
CPUINFO = Path("/proc/cpuinfo")  # of Linux, and only there kernels are compiled
FLAGS = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
NEEDED = {
    "AVX512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
    "AVX2": {"avx2", "fma"},
    "DEFAULT": set(),
}
HERE = torch.backends.cpu.get_cpu_capability()
# What this CPU can run, and every lesser one.
KINDS = [*NEEDED][[*NEEDED].index(HERE) :] if HERE in NEEDED else [HERE]
KERNELS = [kind for kind in KINDS if NEEDED.get(kind) and NEEDED[kind] <= FLAGS]
DTYPES = [torch.float32, torch.bfloat16]
# Around the kernel's tiles (8, 16, 32 queries), blocks (4, 8, 128 keys) and tasks (512 queries).
LENGTHS = [1, 3, 17, 8, 9, 31, 32, 33, 129, 16, 511, 515, 128, 1030]
HEAD_DIMS = (16, 24, 32, 64, 128)
pytestmark = pytest.mark.cpu


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Let the CPU be of one kind."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    kernels._library.cache_clear()
    yield request.param
    kernels._library.cache_clear()


of_each_kernel = pytest.mark.parametrize(
    "kind",
    KERNELS or [pytest.param(HERE, marks=pytest.mark.skip(reason=f"no kernel is for {HERE}"))],
    indirect=True,
)
in_each_format = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def ours(q, k, v, lengths, rotary=None):
    """Attend by what ``auto`` chooses; q and k are rotated by `rotary` first."""
    backend = select_backend("auto", CPU, q.dtype, q.shape[-1]).name
    if rotary is not None and backend not in WITH_ROTARY:
        q, k = rotate(torch.stack((q, k), 1), rotary).unbind(1)
        rotary = None
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return attend(backend, q, k, v, Sequences(cu_seqlens, max(lengths), lengths), rotary)


def relative_l2(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def test_every_kind_of_kernel_that_this_cpu_can_run_is_tested():
    """By what the system tells of the CPU, not torch; unless it is to pass for a lesser one."""
    best = [*NEEDED].index(os.environ.get("ATEN_CPU_CAPABILITY", "avx512").upper())
    lesser = [*NEEDED.items()][best:]
    assert [kind for kind, needed in lesser if needed and needed <= FLAGS] == KERNELS


@in_each_format
def test_auto_on_a_cpu_that_can_run_it_is_the_kernel(kind, dtype):
    """It was compiled at installation: a missing library is a failure here, not a skip."""
    has = kind in KERNELS
    if dtype == torch.bfloat16:
        has = kind == "AVX512" and "avx512_bf16" in FLAGS
    name, reason = select_backend("auto", CPU, dtype, 64)
    assert name == ("varlen_cpu" if has else "sdpa")
    assert has or ("bfloat16" in reason if kind in KERNELS else "AVX2" in reason)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_float32_equals_textbook_attention(kind, head_dim):
    q, k, v, cu_seqlens = packed(LENGTHS, heads=3, head_dim=head_dim)
    expected = textbook(q, k, v, LENGTHS)
    torch.testing.assert_close(ours(q, k, v, LENGTHS).double(), expected, atol=3e-6, rtol=3e-6)
    # No worse than torch's own: rounding, not another formula.
    theirs = relative_l2(varlen_attention(q, k, v, cu_seqlens, 1030), expected)
    assert relative_l2(ours(q, k, v, LENGTHS), expected) <= 1.5 * theirs


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_bfloat16_equals_textbook_attention(kind, head_dim):
    q, k, v, _ = packed(LENGTHS, heads=3, head_dim=head_dim, dtype=torch.bfloat16)
    expected = textbook(q, k, v, LENGTHS)
    # Weights and numbers are rounded by 2⁻⁸ of themselves at most, about half of it on average.
    for found, by_itself in zip(
        ours(q, k, v, LENGTHS).split(LENGTHS), expected.split(LENGTHS), strict=True
    ):
        assert relative_l2(found, by_itself) <= 2**-8


@pytest.mark.parametrize("size", [30, 3_000])
def test_scores_far_apart(kind, size):
    """Weights below float32's range, and a maximum that moves from block to block.

    Of whole numbers, so that the scores are exact: rounded ones would differ by more than weights.
    """
    q, k, v, _ = packed([700], head_dim=64)
    q, k = (q * size).round(), (k * torch.linspace(0, 2, 700)[:, None, None]).round()
    torch.testing.assert_close(
        ours(q, k, v, [700]).double(), textbook(q, k, v, [700]), atol=1e-5, rtol=1e-5
    )


@in_each_format
def test_a_protein_has_one_result_alone_in_any_pack_and_with_any_threads(kind, dtype):
    lengths = [40, 600, 7]
    q, k, v, _ = packed(lengths, dtype=dtype)
    together = ours(q, k, v, lengths)
    alone = ours(q[40:640], k[40:640], v[40:640], [600])
    assert torch.equal(together[40:640], alone)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 3)
    try:
        assert torch.equal(ours(q, k, v, lengths), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_passed_on_within_its_protein(kind, which, bad):
    lengths = [20, 200, 20]
    qkv = torch.stack(packed(lengths)[:3])
    before = ours(*qkv, lengths)
    qkv[which, 100, 1, 5] = bad
    after = ours(*qkv, lengths)
    assert torch.equal(after.isfinite(), textbook(*qkv, lengths).isfinite())
    assert not after.isfinite().all()
    untouched = torch.ones(after.shape[:2], dtype=bool)
    untouched[20:220, 1] = False
    assert torch.equal(after[untouched], before[untouched])


@in_each_format
def test_views_into_one_projection_give_what_copies_give(kind, dtype):
    qkv = torch.randn(12, 3, 2, 24).to(dtype)
    views = ours(*qkv.unbind(1), [5, 7])
    assert torch.equal(ours(*(x.contiguous() for x in qkv.unbind(1)), [5, 7]), views)
    if select_backend("auto", CPU, dtype, 24).name == "sdpa":
        return  # which is given none but numbers that adjoin
    heads_last = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv.unbind(1)]
    assert torch.equal(ours(*heads_last, [5, 7]), views)


@pytest.mark.parametrize("bounds", [[0, 5], [1, 10], [0, 11], [0, 7, 3, 10]])
def test_bounds_that_do_not_fit_the_pack_are_refused(bounds):
    q, k, v, _ = packed([10])
    with pytest.raises(ValueError, match="cu_seqlens"):
        kernels.attend(q, k, v, torch.tensor(bounds, dtype=torch.int32))


def test_keys_of_another_shape_are_refused():
    q, k, v, cu_seqlens = packed([10])
    with pytest.raises(ValueError, match="shape"):
        kernels.attend(q, k[:9], v, cu_seqlens)


def test_gradients_are_refused():
    q, k, v, cu_seqlens = packed([10])
    with pytest.raises(ValueError, match="no gradients"):
        kernels.attend(q.requires_grad_(), k, v, cu_seqlens)


@of_each_kernel
def test_what_it_cannot_do_is_named(kind):
    def refused(device, dtype, head_dim, match):
        with pytest.raises(UserError, match=match):
            select_backend("varlen_cpu", device, dtype, head_dim)
        return select_backend("auto", CPU, dtype, head_dim)

    assert refused(CPU, torch.float32, 20, "heads of 20").name == "sdpa"
    assert refused(CPU, torch.float16, 64, "float32.*, not float16").name == "sdpa"
    refused(torch.device("cuda", 0), torch.float32, 64, "runs on a CPU")


@of_each_kernel
def test_a_cpu_or_an_installation_without_it_is_named(kind, monkeypatch):
    monkeypatch.setattr(kernels, "_LIBRARIES", {kind: "packedesm.esm2._not_compiled"})
    name, reason = select_backend("auto", CPU, torch.float32, 64)
    assert name == "sdpa"
    assert "not compiled" in reason
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "AVX2" in select_backend("auto", CPU, torch.float32, 64).reason


def rotated(x, rotary):
    """Rotary embedding in float64, rounded to what `x` is."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary.squeeze(1)).flatten(-2).to(x.dtype)


@in_each_format
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotary_embedding_on_the_way_is_complex_multiplication(kind, head_dim, dtype):
    q, k, v, _ = packed(LENGTHS, heads=3, head_dim=head_dim, dtype=dtype)
    angles = torch.rand(len(q), 1, 1, head_dim // 2) * 100
    rotary = torch.polar(torch.ones_like(angles), angles)
    found = ours(q, k, v, LENGTHS, rotary)
    expected = textbook(rotated(q, rotary), rotated(k, rotary), v, LENGTHS)
    assert relative_l2(found, expected) <= (1e-6 if dtype == torch.float32 else 2**-8)


def test_rotary_phases_of_another_shape_are_refused():
    q, k, v, cu_seqlens = packed([10])
    with pytest.raises(ValueError, match="rotary"):
        kernels.attend(q, k, v, cu_seqlens, torch.ones(9, 1, 1, 8, dtype=torch.complex64))


def test_a_backend_without_rotary_takes_none():
    q, k, v, cu_seqlens = packed([10])
    rotary = torch.ones(10, 1, 1, 8, dtype=torch.complex64)
    with pytest.raises(ValueError, match="sdpa"):
        attend("sdpa", q, k, v, Sequences(cu_seqlens, 10), rotary)


@of_each_kernel
def test_a_kernel_of_other_sources_is_not_called(kind, monkeypatch, tmp_path):
    """After an update of the checkout, before it was installed again."""
    source = tmp_path / "cpu_kernels.cpp"
    source.write_bytes(kernels._SOURCE.read_bytes())
    monkeypatch.setattr(kernels, "_SOURCE", source)
    assert kernels.unavailable_reason(CPU, torch.float32, 64) is None
    kernels._library.cache_clear()
    source.write_text(source.read_text() + "// another line")
    assert "other sources" in kernels.unavailable_reason(CPU, torch.float32, 64)
