"""What ``auto`` comes to on a device, and that it says why."""

import pytest
import torch

from packedesm.device import auto
from packedesm.device.auto import (
    NAMED,
    load,
    resolve_dtype,
    resolve_output_dtype,
    unfit_reason,
)
from packedesm.device.token_budget import Workload
from packedesm.errors import Fault
from packedesm.esm2.contacts import BYTES_PER_PAIR
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.files import file_digest
from packedesm.options import EmbedOptions
from tests.typed import checkpoint, embed_plan, options

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL = Geometry(layers=1, width=32, heads=2)
WORK = Workload(1000, 10, lambda _budget: [])


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.pt"
    write_random_checkpoint(path, SMALL, seed=1)
    return checkpoint(path=str(path), geometry=SMALL, sha256=file_digest(path))


def test_the_number_format_follows_the_device():
    assert resolve_dtype("auto", CUDA)[0] == "float16"
    assert resolve_dtype("auto", CPU)[0] == "float32"
    dtype, reason = resolve_dtype("bfloat16", CPU)
    assert dtype == "bfloat16" and reason.startswith(NAMED)


def test_files_are_as_fine_as_the_computation_allows():
    assert resolve_output_dtype("auto", "float32")[0] == "float32"
    assert resolve_output_dtype("auto", "bfloat16")[0] == "float16"
    assert resolve_output_dtype("float32", "bfloat16") == ("float32", NAMED)


def test_nothing_in_a_plan_is_auto_and_everything_has_its_reason(small):
    plan, model = load(small, options(EmbedOptions), CPU, WORK)
    assert "auto" not in plan.as_json().values()
    assert plan.reasons.keys() == {"dtype", "output_dtype", "attention", "kernels", "token_budget"}
    assert all(plan.reasons.values())
    assert model.embed_tokens.weight.dtype == torch.float32
    assert plan.token_budget == 4096


def test_what_was_named_is_kept(small):
    asked = options(EmbedOptions, token_budget=77, attention="sdpa", outputs=["cls"])
    plan, _ = load(small, asked, CPU, WORK)
    assert (plan.token_budget, plan.attention, plan.arrays) == (77, "sdpa", ("cls",))
    assert plan.reasons["token_budget"] == plan.reasons["attention"] == NAMED


def test_weights_that_do_not_fit_are_told_with_their_size(small, monkeypatch):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(auto.PackedESM2, "from_fair_esm", full)
    with pytest.raises(Fault, match=rf"{small.path}: its weights, .* GB in float32, do not fit"):
        load(small, options(EmbedOptions), CPU, WORK)


@pytest.mark.parametrize(
    ("plan", "kind", "device", "capability", "reason"),
    [
        ({}, "cpu", CPU, None, None),
        ({}, "cuda", CPU, None, "it is not a GPU"),
        ({}, "cpu", CUDA, None, "it is not a CPU"),
        ({"attention": "torch_varlen", "dtype": "float16"}, "cuda", CUDA, (9, 0), None),
        (
            {"attention": "torch_varlen", "dtype": "float16"},
            *("cuda", CUDA, (7, 5)),
            "attention torch_varlen: it does not run on a GPU of compute capability 7.5",
        ),
        (
            {"dtype": "bfloat16"},
            "cuda",
            CUDA,
            (7, 5),
            "dtype bfloat16: Tesla T4 does not compute in",
        ),
        ({"attention": "flash_attn_9"}, "cpu", CPU, None, "attention flash_attn_9: it is unknown"),
        ({"kernels": "triton"}, "cpu", CPU, None, "kernels triton: Triton's kernels are for a GPU"),
    ],
)
def test_a_device_that_cannot_go_on_with_a_plan_says_why(
    plan, kind, device, capability, reason, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    found = unfit_reason(embed_plan(**plan), kind, Geometry(1, 64, 2), device)
    assert found == reason or found.startswith(reason)


@pytest.mark.cpu
def test_a_plan_of_another_cpu_goes_on_where_its_attention_is_there():
    from packedesm.esm2 import kernels

    reason = unfit_reason(embed_plan(attention="varlen_cpu"), "cpu", Geometry(1, 64, 2), CPU)
    missing = kernels.unavailable_reason(CPU, torch.float32, 32)
    assert reason == (missing and f"attention varlen_cpu: {missing}")


def test_packs_leave_room_for_what_is_kept_of_their_contacts(monkeypatch):
    """The model lies on the meta device, so that it is asked for as on a GPU."""
    found = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2 * 10**9, 4 * 10**9))
    monkeypatch.setattr(
        auto, "fastest_budget", lambda _model, _name, most, _work: found.append(most)
    )
    model = PackedESM2(MODELS["esm2_t6_8M_UR50D"])
    for besides in (0, BYTES_PER_PAIR * 1022):
        auto.resolve_token_budget("auto", model, "sdpa", WORK, besides)
    per_token = 16 * 320 * 4
    limits = [10**9 / per_token, 10**9 / (per_token + BYTES_PER_PAIR * 1022)]
    assert found == [int(limit) // 1024 * 1024 for limit in limits]
    assert found[1] < 0.8 * found[0]
