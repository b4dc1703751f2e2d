"""Small checkpoints in both layouts, for the tests of what reads them."""

import json

import torch
from safetensors.torch import save_file

from packedesm.esm2.geometry import Geometry

SMALL = Geometry(layers=2, width=32, heads=4)
HUGGING_FACE_NAMES = {
    "embed_tokens": "embeddings.word_embeddings",
    "emb_layer_norm_after": "encoder.emb_layer_norm_after",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def write_huggingface_folder(folder, geometry, state, *, shards=1, heads=None, **settings):
    """Write `state` (fair-esm's names) as Hugging Face's EsmForMaskedLM is written.

    Its heads are parts that nobody can use, unless `heads` gives them, by fair-esm's names.
    """
    folder.mkdir()
    config = {
        "model_type": "esm",
        "num_hidden_layers": geometry.layers,
        "hidden_size": geometry.width,
        "num_attention_heads": geometry.heads,
        "intermediate_size": 4 * geometry.width,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "vocab_size": 33,
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    named = {}
    for name, tensor in state.items():
        prefix, module = "esm.", name.rpartition(".")[0]
        if name.startswith("layers."):
            _, layer, module = module.split(".", 2)
            prefix = f"esm.encoder.layer.{layer}."
        kind = name.rpartition(".")[2]
        named[f"{prefix}{HUGGING_FACE_NAMES[module]}.{kind}"] = tensor.clone()
    if heads is None:
        named["lm_head.dense.weight"] = torch.zeros(geometry.width, geometry.width)
        named["esm.contact_head.regression.bias"] = torch.zeros(1)
    for name, tensor in (heads or {}).items():
        theirs = name.replace("lm_head.weight", "lm_head.decoder.weight")
        theirs = theirs.replace("contact_head.", "esm.contact_head.")
        named[theirs] = tensor.clone()
    named["esm.embeddings.position_ids"] = torch.arange(8)[None]
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return
    names = [f"model-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    places = {name: names[i % shards] for i, name in enumerate(named)}
    for file in names:
        part = {name: tensor for name, tensor in named.items() if places[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def write_adapter(folder, base, tensors, **settings):
    """Write a LoRA adapter to the model in `base` as peft does, by default of rank 2."""
    folder.mkdir(exist_ok=True)
    common = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "init_lora_weights": True}
    common["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(common | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
