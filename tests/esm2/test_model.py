"""Size table, weight map and the parts of the model that can be told apart."""

import esm
import numpy as np
import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.esm2.steps import KERNELS, embed
from packedesm.esm2.weights import tensor_shapes

SMALL = Geometry(layers=2, width=32, heads=4)
MASK = 32


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pt"
    write_random_checkpoint(path, SMALL, seed=3)
    return load_state(path)[1]


def forward(model, *sequences):
    """Run token lists as one pack, and return the representation of each."""
    lengths = [len(sequence) for sequence in sequences]
    input_ids = torch.tensor([token for sequence in sequences for token in sequence])
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    found = model.forward_packed(input_ids, positions, cu_seqlens, max(lengths), lengths=lengths)
    return found.split(lengths)


def test_the_six_published_sizes():
    sizes = {(g.layers, g.width, g.heads) for name, g in MODELS.items() if "UR50D" in name}
    assert sizes == {
        (6, 320, 20),
        (12, 480, 20),
        (30, 640, 20),
        (33, 1280, 20),
        (36, 2560, 40),
        (48, 5120, 40),
    }


@pytest.mark.parametrize("geometry", [SMALL, MODELS["esm2_t6_8M_UR50D"]], ids=str)
def test_parameters_and_shapes_are_those_of_fair_esms_encoder(geometry):
    theirs = {
        name: tuple(weight.shape)
        for name, weight in esm.ESM2(geometry.layers, geometry.width, geometry.heads)
        .state_dict()
        .items()
        if not name.startswith(("lm_head", "contact_head")) and "inv_freq" not in name
    }
    assert tensor_shapes(geometry) == theirs
    assert geometry.parameters == sum(int(np.prod(shape)) for shape in theirs.values())


def test_our_model_has_as_many_parameters_as_the_formula_says():
    with torch.device("meta"):
        model = PackedESM2(MODELS["esm2_t48_15B_UR50D"])
    counted = sum(weight.numel() for weight in model.parameters())
    assert counted == MODELS["esm2_t48_15B_UR50D"].parameters


def test_flops_of_one_small_case_counted_by_hand():
    # One layer of width 2, sequences of 3 and 1 tokens. Matrices: 12 · 2² weights, 2 operations,
    # 4 tokens. Attention: two products of 2 · 2 T² operations.
    assert Geometry(1, 2, 1).flops([3, 1]) == 12 * 4 * 2 * 4 + 2 * 2 * 2 * (9 + 1)


def test_flops_equal_the_counter_of_torch(state):
    from torch.utils.flop_counter import FlopCounterMode

    # With gradients the products are torch's own, which the counter knows.
    model = PackedESM2.from_fair_esm(state, SMALL).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        forward(model, [0, *range(4, 24), 2], [0, 5, 2])
    flash = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    matrices = counter.get_flop_counts()["Global"]
    counted = sum(n for operator, n in matrices.items() if str(operator) != flash)
    attention = SMALL.layers * 4 * SMALL.width * (22**2 + 3**2)
    assert SMALL.flops([22, 3]) == counted + attention


def test_a_missing_tensor_is_named(state):
    incomplete = {name: x for name, x in state.items() if name != "layers.1.fc2.bias"}
    with pytest.raises(UserError, match=r"layers\.1\.fc2\.bias is missing"):
        PackedESM2.from_fair_esm(incomplete, SMALL)


def test_an_unexpected_tensor_is_named(state):
    with pytest.raises(UserError, match=r"unexpected tensor layers\.0\.lora\.weight"):
        PackedESM2.from_fair_esm(state | {"layers.0.lora.weight": torch.zeros(1)}, SMALL)


def test_a_misshapen_tensor_is_named_with_both_shapes(state):
    wrong = state | {"layers.0.fc1.weight": torch.zeros(128, 31)}
    with pytest.raises(UserError, match=r"layers\.0\.fc1\.weight.*\[128, 31\].*\[128, 32\]"):
        PackedESM2.from_fair_esm(wrong, SMALL)


def test_another_number_of_heads_than_the_weights_were_made_for_is_noticed(state):
    with pytest.raises(UserError, match=r"inv_freq.*\[4\].*\[8\]"):
        PackedESM2.from_fair_esm(state, Geometry(layers=2, width=32, heads=2))


def test_frequencies_that_differ_between_layers_are_refused(state):
    name = "layers.1.self_attn.rot_emb.inv_freq"
    with pytest.raises(UserError, match="differ between layers"):
        PackedESM2.from_fair_esm(state | {name: state[name] * 2}, SMALL)


def test_the_heads_are_left_out(state):
    extra = {"lm_head.bias": torch.zeros(33), "contact_head.regression.bias": torch.zeros(1)}
    names = PackedESM2.from_fair_esm(state | extra, SMALL).state_dict()
    assert not any("head." in name for name in names)


def test_weights_do_not_share_memory_with_the_checkpoint(state):
    model = PackedESM2.from_fair_esm(state, SMALL)
    before = forward(model, [0, 5, 2])[0]
    changed = state["layers.0.fc1.weight"]
    original = changed.clone()
    try:
        changed.zero_()
        assert torch.equal(forward(model, [0, 5, 2])[0], before)
    finally:
        changed.copy_(original)


def test_a_cast_of_the_whole_module_leaves_the_rotary_frequencies_in_float32(state):
    model = PackedESM2.from_fair_esm(state, SMALL)
    before = model.frequencies.clone()
    assert before.dtype == torch.float32
    assert torch.equal(model.bfloat16().frequencies, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_weights(state, dtype):
    found = forward(PackedESM2.from_fair_esm(state, SMALL, dtype), [0, 5, 6, 2])[0]
    assert found.dtype == dtype
    assert found.shape == (4, SMALL.width)
    assert found.isfinite().all()


def test_masked_embeddings_are_zero_and_the_others_scaled_per_sequence(state):
    table = state["embed_tokens.weight"]
    input_ids = torch.tensor([0, MASK, 7, 2, 0, 7, 2])  # one of 4 masked, none of 3
    found = embed(input_ids, torch.tensor([0, 4, 7], dtype=torch.int32), table)
    torch.testing.assert_close(found[1], torch.zeros(SMALL.width))
    torch.testing.assert_close(found[2], table[7] * 0.88 / 0.75)
    torch.testing.assert_close(found[5], table[7] * 0.88)


def test_the_input_is_not_changed(state):
    model = PackedESM2.from_fair_esm(state, SMALL)
    input_ids, positions = torch.tensor([0, 5, 2]), torch.arange(3)
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32)
    first = model.forward_packed(input_ids, positions, cu_seqlens, 3)
    assert input_ids.tolist() == [0, 5, 2]
    assert positions.tolist() == [0, 1, 2]
    assert torch.equal(model.forward_packed(input_ids, positions, cu_seqlens, 3), first)


def test_no_operation_of_the_forward_pass_copies_to_the_host(state):
    """On a GPU such a copy waits for the device. Meta tensors have no values to copy."""
    model = PackedESM2.from_fair_esm(state, SMALL).to("meta")
    lengths = [4, 4, 3]
    found = model.forward_packed(
        torch.empty(11, dtype=torch.int64, device="meta"),
        torch.empty(11, dtype=torch.int64, device="meta"),
        torch.empty(4, dtype=torch.int32, device="meta"),
        4,
        lengths=lengths,
    )
    assert found.shape == (11, SMALL.width)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("attention", ["sdpa", "torch_varlen", "memory_efficient"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_forward_pass_does_not_wait_for_the_gpu(state, attention, kernels):
    model = PackedESM2.from_fair_esm(state, SMALL, torch.float16, "cuda")
    model.use_kernels(kernels)
    input_ids = torch.tensor([0, 5, 2, 0, 6, 7, 2], device="cuda")
    positions = torch.tensor([0, 1, 2, 0, 1, 2, 3], device="cuda")
    cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32, device="cuda")

    def run():
        return model.forward_packed(
            input_ids, positions, cu_seqlens, 4, attention=attention, lengths=[3, 4]
        )

    run()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
