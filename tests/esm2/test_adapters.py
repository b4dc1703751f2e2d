"""LoRA adapters: what cannot be merged, or does not fit, is refused by name.

That what is merged is what peft computes is shown by tests/models.
"""

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare, read
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.input_files import present_files
from packedesm.esm2.registry import MODELS, TINY
from tests.esm2.checkpoint_files import write_adapter, write_huggingface_folder

QUERY = "base_model.model.esm.encoder.layer.1.attention.self.query"
OURS = "layers.1.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path, small):
    folder = tmp_path / "base"
    write_huggingface_folder(folder, *load_state(small))
    return folder


def matrices(rank=2, width=32):
    generator = torch.Generator().manual_seed(1)
    return {
        f"{QUERY}.lora_A.weight": torch.randn(rank, width, generator=generator),
        f"{QUERY}.lora_B.weight": torch.randn(width, rank, generator=generator),
    }


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 3),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"self.query": 4, "query": 9}}, 2),
        ({"alpha_pattern": {"ery": 4, "layer.0.attention.self.query": 9}}, 3),
        ({"r": 8, "rank_pattern": {"query": 2}}, 3),
    ],
)
def test_the_product_is_scaled_and_added_in_float32(tmp_path, base, settings, scale):
    tensors = matrices()
    weights = read(write_adapter(tmp_path / "lora", base, tensors, **settings))
    before = read(base).state
    a, b = tensors.values()
    torch.testing.assert_close(weights.state[OURS], before[OURS] + scale * (b @ a))
    same = [name for name in before if name != OURS]
    assert weights.state.keys() == before.keys()
    assert all(torch.equal(weights.state[name], before[name]) for name in same)


def test_a_half_precision_base_is_not_rounded_again(tmp_path, small):
    geometry, state = load_state(small)
    folder = tmp_path / "half"
    write_huggingface_folder(folder, geometry, {n: x.bfloat16() for n, x in state.items()})
    merged = read(write_adapter(tmp_path / "lora", folder, matrices())).state[OURS]
    assert merged.dtype == torch.float32
    assert not torch.equal(merged, merged.bfloat16().float())


def test_an_adapter_of_a_published_model_finds_it_in_the_folder_of_checkpoints(tmp_path):
    checkpoints, folder = tmp_path / "checkpoints", tmp_path / "lora"
    tensors = {
        name.replace("esm.encoder.layer.1.", "esm.encoder.layer.2."): x
        for name, x in matrices(width=64).items()
    }
    write_adapter(folder, f"facebook/{TINY}", tensors)
    assert present_files(folder, checkpoints) == []
    record = prepare(str(folder), checkpoints)  # makes or fetches what is not there
    assert record.base == str(checkpoints / f"{TINY}.pt")
    assert record.geometry == MODELS[TINY]
    assert present_files(folder, checkpoints) == record.files()
    assert record.layout.endswith("merged into: fair-esm, float32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', only LORA is merged here; merge it where"),
        ({"use_dora": True}, "use_dora is True, which is not merged here"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"something_new": {"a": 1}}, "something_new is"),
        ({"revision": "abc"}, "revision is 'abc'"),
        ({"lora_alpha": "6"}, "lora_alpha or alpha_pattern is no number"),
        ({"alpha_pattern": {"query": True}}, "lora_alpha or alpha_pattern is no number"),
        ({"alpha_pattern": [1]}, "lora_alpha or alpha_pattern is no number"),
        ({"alpha_pattern": {"(a+)+$": 4}}, r"alpha_pattern has '\(a\+\)\+\$', not a module's name"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/not/here"}, "the base model /not/here is not here; put"),
        ({"base_model_name_or_path": "x" * 9999}, "the base model 'xxx"),
        ({"base_model_name_or_path": "~nobody-here/x"}, "the base model ~nobody-here/x is not"),
        (
            {"base_model_name_or_path": "me/esm2_t6_8M_UR50D"},
            "the base model me/esm2_t6_8M_UR50D is",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_by_the_name_of_its_setting(
    tmp_path, base, settings, message
):
    folder = write_adapter(tmp_path / "lora", base, matrices(), **settings)
    with pytest.raises(UserError, match=rf"adapter_config\.json: {message}"):
        prepare(str(folder), "auto")


def test_an_adapter_on_an_adapter_is_refused_and_one_on_itself(tmp_path, base):
    inner = write_adapter(tmp_path / "inner", base, matrices())
    outer = write_adapter(tmp_path / "outer", inner, matrices())
    own = write_adapter(tmp_path / "own", tmp_path / "own", matrices())
    for folder in (outer, own):
        with pytest.raises(UserError, match="the base is an adapter too; merge and save"):
            prepare(str(folder), "auto")


A, B = (f"{QUERY}.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(A),
            r"the two matrices of layers\.1\.self_attn\.q_proj\.weight are not whole",
        ),
        (lambda t: t.update({A: torch.zeros(2)}), "are not whole"),
        (lambda t: t.update({A: torch.zeros(3, 32)}), "the two matrices of .* do not fit"),
        (
            lambda t: t.update({A: torch.zeros(2, 64)}),
            r"is \[32, 64\], its base has \[32, 32\]; set",
        ),
        (lambda t: t.update({A: torch.zeros(2, 32, dtype=torch.int8)}), "lora_A.weight is int8"),
        (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.zeros(32)}), "lora_magnitude"),
        (
            lambda t: t.update({f"{QUERY}.modules_to_save.weight": torch.zeros(1)}),
            "modules_to_save",
        ),
        (
            lambda t: t.update(
                {B.replace("r.1.", "r.7."): t.pop(B), A.replace("r.1.", "r.7."): t.pop(A)}
            ),
            r"layers\.7\.self_attn\.q_proj\.weight is nothing that can be merged",
        ),
        (
            lambda t: (t.clear(), t.update({"base_model.model.classifier.bias": torch.zeros(2)})),
            "changes nothing of the encoder",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, base, change, message):
    tensors = matrices()
    change(tensors)
    folder = write_adapter(tmp_path / "lora", base, tensors)
    with pytest.raises(UserError, match=rf"adapter_model\.safetensors: .*{message}"):
        prepare(str(folder), "auto")


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"base_model_name_or_path": 3}'])
def test_damaged_settings_of_an_adapter_are_one_line(tmp_path, base, content):
    folder = write_adapter(tmp_path / "lora", base, matrices())
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json: (names no base|cannot be read)"):
        prepare(str(folder), "auto")


def test_an_adapter_without_weights_is_refused(tmp_path, base):
    folder = write_adapter(tmp_path / "lora", base, matrices())
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing; copy the folder"):
        prepare(str(folder), "auto")


def test_a_base_that_is_gone_or_changed_is_noticed(tmp_path, small):
    from packedesm.esm2.checkpoints import reading_weights

    record = prepare(str(write_adapter(tmp_path / "lora", small, matrices())), "auto")
    with reading_weights(record):
        pass
    write_random_checkpoint(small, record.geometry, seed=6)
    with pytest.raises(UserError, match="changed since it was checked"), reading_weights(record):
        pass
    small.unlink()
    with pytest.raises(UserError, match=r"small\.pt: is gone"), reading_weights(record):
        pass
