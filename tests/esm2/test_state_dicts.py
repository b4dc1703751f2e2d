"""Files that hold tensors alone: where they are found, and how large the model is, or one line."""

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare, read
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.registry import MODELS
from tests.esm2.checkpoint_files import SMALL

HEAD = {"lm_head.bias": torch.zeros(33), "contact_head.regression.weight": torch.zeros(1, 8)}


@pytest.fixture
def state(small):
    """The tensors of a small model by fair-esm's names, as model.state_dict() has them."""
    return {name: tensor.clone() for name, tensor in load_state(small)[1].items()} | HEAD


def saved(folder, content):
    torch.save(content, folder / "saved.pt")
    return folder / "saved.pt"


@pytest.mark.parametrize("prefix", ["", "model.", "net.esm.", "module.", "_orig_mod."])
@pytest.mark.parametrize("place", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_found_under_any_prefix_and_usual_key(
    tmp_path, small, state, prefix, place
):
    tensors = {prefix + name: tensor for name, tensor in state.items()}
    if prefix in ("model.", "net.esm."):
        tensors["top.weight"] = torch.zeros(2, 2)  # a head beside the encoder, of any name
    path = saved(tmp_path, tensors if place is None else {place: tensors, "epoch": 1})
    weights = read(path)
    expected = load_state(small)[1]
    assert weights.geometry == SMALL
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[name], expected[name]) for name in expected)
    assert weights.left_out == ("contact_head", "lm_head", *(["top"] * ("top.weight" in tensors)))


def test_wrappers_are_seen_through_wherever_they_stand(tmp_path, state):
    tensors = {f"module.net._orig_mod.{name}": tensor for name, tensor in state.items()}
    layer = "module.net._orig_mod.layers.1.fc1.weight"
    tensors[layer.replace("fc1", "_checkpoint_wrapped_module.fc1")] = tensors.pop(layer)
    weights = read(saved(tmp_path, tensors))
    assert "prefix 'net.'" in weights.layout
    assert torch.equal(weights.state["layers.1.fc1.weight"], state["layers.1.fc1.weight"])


def test_what_was_read_and_left_out_is_told(tmp_path, state, caplog):
    caplog.set_level("INFO")
    record = prepare(str(saved(tmp_path, {"state_dict": state})), "auto")
    assert record.format == "state_dict"
    assert record.layout == "state dict in fair-esm's names, in 'state_dict', float32"
    assert "these parts change no vector: contact_head, lm_head" in caplog.text


def test_without_frequencies_the_heads_are_those_of_the_published_model(tmp_path, state):
    bare = {name: x for name, x in state.items() if "inv_freq" not in name}
    with pytest.raises(UserError, match=r"how many attention heads its 2 layers of width 32 have"):
        read(saved(tmp_path, bare))
    tiny = MODELS["esm2_tiny_random"]
    write_random_checkpoint(tmp_path / "tiny.pt", tiny, seed=1)
    tensors = load_state(tmp_path / "tiny.pt")[1]
    bare = {name: x for name, x in tensors.items() if "inv_freq" not in name}
    assert read(saved(tmp_path, bare)).geometry == tiny


def test_one_table_of_frequencies_serves_all_layers(tmp_path, state):
    name = "layers.{}.self_attn.rot_emb.inv_freq"
    shared = {other: x for other, x in state.items() if "inv_freq" not in other}
    shared["rotary_embeddings.inv_freq"] = frequencies = torch.tensor([1.0, 0.3, 0.02, 0.001])
    weights = read(saved(tmp_path, shared))
    assert all(torch.equal(weights.state[name.format(n)], frequencies) for n in range(2))
    shared[name.format(1)] = frequencies
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.rot_emb\.inv_freq comes twice"):
        read(saved(tmp_path, shared))


def test_two_encoders_are_not_chosen_between(tmp_path, state):
    tensors = {f"{who}.{name}": x for who in ("student", "teacher") for name, x in state.items()}
    with pytest.raises(UserError, match=r"holds 2 encoders \(student\., teacher\.\); save the one"):
        read(saved(tmp_path, tensors))


def test_a_tensor_of_the_encoder_that_stands_beside_it_is_not_passed_over(tmp_path, state):
    tensors = {f"esm.{name}": tensor for name, tensor in state.items()}
    tensors["encoder.layer.0.output.dense.bias"] = torch.zeros(32)
    with pytest.raises(UserError, match=r"layers\.0\.fc2\.bias comes twice"):
        read(saved(tmp_path, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.1.fc2.bias"), r"tensor layers\.1\.fc2\.bias is missing"),
        (
            lambda s: s.update({"layers.0.x.weight": torch.zeros(1)}),
            r"unexpected tensor layers\.0\.x",
        ),
        (lambda s: s.update({"top.weight": torch.zeros(1)}), r"unexpected tensor top\.weight"),
        (lambda s: s.update({"embed_tokens.weight": torch.zeros(40, 32)}), r"\[40, 32\]"),
        (lambda s: s.update({"embed_tokens.weight": torch.zeros(33)}), r"number of width is 0"),
        (lambda s: s.update({"layers.0.fc1.weight": [1.0]}), r"fc1\.weight is no tensor"),
        (lambda s: s.update({7: torch.zeros(1)}), "no text in the name 7"),
        (lambda s: s.clear(), r"is no ESM-2 \(it holds no tensor\)"),
    ],
)
def test_a_state_dict_that_is_no_whole_esm2_is_one_line(tmp_path, state, change, message):
    change(state)
    with pytest.raises(UserError, match=rf"saved\.pt.*{message}"):
        read(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not named tensors"),
        ({"state": {}, "param_groups": []}, "is the state of an optimizer without its model"),
        ({"epoch": 3}, r"is no ESM-2 \(it holds epoch\)"),
    ],
)
def test_content_without_a_model_is_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"saved\.pt: {message}"):
        prepare(str(saved(tmp_path, content)), "auto")
