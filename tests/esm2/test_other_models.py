"""What is not read is told by what it is, with what to do."""

import json

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare
from tests.esm2.checkpoint_files import write_huggingface_folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"position_embedding_type": "absolute", "emb_layer_norm_before": True},
            "is an ESM-1b; packedesm embeds with ESM-2: name one",
        ),
        ({"position_embedding_type": "absolute"}, "is an ESM-1v"),
        ({"position_embedding_type": None}, "is an ESM-1v|position_embedding_type"),
        ({"is_folding_model": True}, "is an ESMFold; name the ESM-2 in it: esm2_t36_3B_UR50D"),
        ({"is_decoder": True}, "is an ESM that is used as a decoder"),
        ({"model_type": "t5"}, "is a T5, as ProtT5"),
        ({"model_type": "bert"}, "is a BERT, as ProtBert is"),
        ({"model_type": "esmc"}, "is an ESM C;"),
        ({"model_type": "ESMplusplus"}, r"is an ESM C \(ESM\+\+\)"),
        ({"model_type": "esm3"}, "is an ESM3"),
        ({"model_type": "AMPLIFY"}, "is an AMPLIFY"),
        ({"model_type": "nv_esm"}, "TransformerEngine weights; convert it"),
        ({"model_type": "mamba"}, "model_type is 'mamba', ESM-2 has 'esm'"),
        ({"quantization_config": {"load_in_8bit": True}}, "is a quantised model"),
        ({"vocab_size": 446}, r"SaProt has 446.*resize_token_embeddings\(33\)"),
        ({"token_dropout": False}, "token_dropout is False"),
        ({"mask_token_id": 4}, "mask_token_id is 4, ESM-2 has 32"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
    ],
)
def test_a_folder_of_another_model_is_told_by_its_settings(tmp_path, small, settings, message):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small), **settings)
    with pytest.raises(UserError, match=message):
        prepare(str(folder), "auto")


def test_another_base_of_rotary_phases_needs_its_frequencies(tmp_path, small):
    geometry, state = load_state(small)
    write_huggingface_folder(tmp_path / "whole", geometry, state, rope_theta=5e5)
    assert prepare(str(tmp_path / "whole"), "auto").geometry == geometry
    bare = {name: tensor for name, tensor in state.items() if "inv_freq" not in name}
    write_huggingface_folder(tmp_path / "bare", geometry, bare, rope_theta=5e5)
    with pytest.raises(UserError, match=r"rope_theta is 500000\.0, .*\(inv_freq\) are not"):
        prepare(str(tmp_path / "bare"), "auto")


@pytest.mark.parametrize("settings", [{"mask_token_id": None}, {"rope_theta": 10000.0}])
def test_a_folder_that_is_silent_or_says_the_usual_is_read(tmp_path, small, settings):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small), **settings)
    assert prepare(str(folder), "auto").geometry.heads == 4


# Names as these models' authors give them.
NAMES = {
    "an ESM-1b": [
        "encoder.sentence_encoder.embed_tokens.weight",
        "encoder.sentence_encoder.layers.0.self_attn.q_proj.weight",
        "encoder.sentence_encoder.emb_layer_norm_before.weight",
        "encoder.sentence_encoder.embed_positions.weight",
    ],
    "an ESM-1v": [
        "encoder.sentence_encoder.embed_tokens.weight",
        "encoder.sentence_encoder.layers.0.self_attn.q_proj.weight",
        "encoder.sentence_encoder.embed_positions.weight",
    ],
    "an ESM-1v or another": [
        "esm.embeddings.word_embeddings.weight",
        "esm.embeddings.position_embeddings.weight",
        "esm.encoder.layer.0.attention.self.query.weight",
    ],
    "an MSA Transformer": ["embed_tokens.weight", "msa_position_embedding"],
    "an ESM C": ["embed.weight", "transformer.blocks.0.attn.layernorm_qkv.1.weight"],
    "an ESM3": ["encoder.sequence_embed.weight", "transformer.blocks.0.geom_attn.proj.weight"],
    "an ESM C or another": ["esmc.embed_tokens.weight", "esmc.layers.0.mlp.gate_proj.weight"],
    "a T5": ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
    "a BERT": ["bert.embeddings.token_type_embeddings.weight"],
    "an AMPLIFY": ["encoder.weight", "transformer_encoder.0.ffn.w12.weight"],
    "an ESM-2 in TransformerEngine weights": [
        "esm.embeddings.word_embeddings.weight",
        "esm.encoder.layers.0.self_attention.layernorm_qkv.layer_norm_weight",
    ],
    "a model with LoRA matrices that are not merged": [
        "base_model.model.esm.embeddings.word_embeddings.weight",
        "base_model.model.esm.encoder.layer.0.attention.self.query.base_layer.weight",
        "base_model.model.esm.encoder.layer.0.attention.self.query.lora_A.default.weight",
    ],
    "a quantised model": [
        "esm.embeddings.word_embeddings.weight",
        "esm.encoder.layer.0.attention.self.query.weight",
        "esm.encoder.layer.0.attention.self.query.SCB",
    ],
    "an ESMFold": ["esm.x", "trunk.structure_module.ipa.linear_q.weight"],
    "no ESM-2 (it holds conv.weight)": ["conv.weight"],
}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("place", [None, "model"])
def test_a_file_of_another_model_is_told_by_its_tensors(tmp_path, what, place):
    tensors = {name: torch.zeros(2, 2) for name in NAMES[what]}
    path = tmp_path / "other.pt"
    torch.save(tensors if place is None else {place: tensors, "args": None}, path)
    with pytest.raises(UserError) as caught:
        prepare(str(path), "auto")
    assert str(caught.value).startswith(f"{path}: is {what}")
    assert "; " in str(caught.value)


def test_a_head_of_another_kind_on_top_of_an_esm2_does_not_hide_it(tmp_path, small):
    tensors = {f"esm.{name}": x.clone() for name, x in load_state(small)[1].items()}
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(2, 2)
    torch.save(tensors, tmp_path / "both.pt")
    assert prepare(str(tmp_path / "both.pt"), "auto").geometry.heads == 4


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tf_model.h5", "weights of TensorFlow; load them with from_tf=True"),
        ("flax_model.msgpack", "weights of Flax"),
        ("esm2-q4.gguf", "GGUF; take the folder"),
        ("model.onnx", "ONNX"),
        ("__0_0.distcp", "shards of torch.distributed.checkpoint; make one file"),
        ("zero_to_fp32.py", "shards of DeepSpeed"),
        ("checkpoint-500", "the checkpoints of a training; name the folder of one of them"),
        ("optimizer.pt", "the state of a training without its model; save the model"),
        ("adapter_model.safetensors", "an adapter; adapter_config.json must lie beside it"),
        (None, "folder without config.json"),
    ],
)
@pytest.mark.parametrize("configured", [False, True])
def test_a_folder_without_weights_is_told_by_its_files(tmp_path, file, message, configured):
    if file:
        (tmp_path / file).write_bytes(b"x")
    if configured:
        message = message if file else r"model\.safetensors is missing; copy the folder again"
        config = {"model_type": "esm", "position_embedding_type": "rotary"}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        prepare(str(tmp_path), "auto")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "name the folder that it is in"),
        ("esm2.gguf", b"GGUF\3\0\0\0", "holds GGUF; take the folder that it was made of"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "holds weights of TensorFlow"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(str(tmp_path / name), "auto")


def test_weights_are_not_read_without_the_settings_beside_them(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small), token_dropout=False)
    torch.save(load_state(small)[1], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*name the folder that it is in"):
        prepare(str(folder / "pytorch_model.bin"), "auto")
