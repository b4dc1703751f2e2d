"""Tell a model that is not read here by what it is: from its settings, tensors or files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"  # a folder that has it holds an adapter, as peft saves it

_TRANSFORMER_ENGINE = (
    "an ESM-2 in TransformerEngine weights",
    "convert it to Hugging Face's layout (NVIDIA's convert_esm_te_to_hf), or name the published "
    "model of its size",
)
_TAKE_ESM2 = "packedesm embeds with ESM-2: name one"
# By `model_type` of a config.json, in lower case.
_TYPES = {
    "nv_esm": _TRANSFORMER_ENGINE,
    "esmc": ("an ESM C", _TAKE_ESM2),
    "esmplusplus": ("an ESM C (ESM++)", _TAKE_ESM2),
    "esm3": ("an ESM3", _TAKE_ESM2),
    "esmfold2": ("an ESMFold2", _TAKE_ESM2),
    "t5": ("a T5, as ProtT5, ProstT5 and Ankh are", _TAKE_ESM2),
    "bert": ("a BERT, as ProtBert is", _TAKE_ESM2),
    "albert": ("an ALBERT, as ProtAlbert is", _TAKE_ESM2),
    "xlnet": ("an XLNet, as ProtXLNet is", _TAKE_ESM2),
    "electra": ("an ELECTRA, as ProtElectra is", _TAKE_ESM2),
    "gpt2": ("a GPT-2, as ProtGPT2 is", _TAKE_ESM2),
    "progen": ("a ProGen", _TAKE_ESM2),
    "amplify": ("an AMPLIFY", _TAKE_ESM2),
    "fast_esm": (
        "a FastESM, which is ESM-2 in a layout of its own",
        "load it as transformers' EsmModel and save that, or name the published model of its size",
    ),
}
# By a pattern that one of its tensors' names has; the more special ones first.
_TENSORS = {
    r"layernorm_qkv\.layer_norm_weight$": _TRANSFORMER_ENGINE,
    r"\.geom_attn\.": _TYPES["esm3"],
    r"transformer\.blocks\.\d+\.attn\.layernorm_qkv\.": _TYPES["esmc"],
    r"\.mlp\.gate_proj\.weight$": ("an ESM C or another model of Llama's kind", _TAKE_ESM2),
    r"transformer_encoder\.\d+\.ffn\.w12\.": _TYPES["amplify"],
    r"\.SelfAttention\.q\.weight$": _TYPES["t5"],
    r"embeddings\.token_type_embeddings\.": _TYPES["bert"],
    r"msa_position_embedding": ("an MSA Transformer", _TAKE_ESM2),
    r"(^|\.)structure_module\.": ("an ESMFold", "name the ESM-2 in it: esm2_t36_3B_UR50D"),
    r"(^|\.)(emb_layer_norm_before|embeddings\.layer_norm)\.": ("an ESM-1b", _TAKE_ESM2),
    r"(^|\.)embed_positions\.": ("an ESM-1v or another ESM-1", _TAKE_ESM2),
    r"\.lora_[AB]\.": (
        "a model with LoRA matrices that are not merged",
        "save it after model.merge_and_unload(), or name the folder of the adapter",
    ),
    r"\.(weight\.absmax|weight\.quant_map|SCB|qweight)$": (
        "a quantised model",
        "save its weights as float32, float16 or bfloat16",
    ),
}
# What a folder without the weights of a model holds instead.
_FILES = {
    "*.gguf": ("GGUF", "take the folder that it was made of"),
    "tf_model.h5": (
        "weights of TensorFlow",
        "load them with from_tf=True in transformers 4 and save them again",
    ),
    "flax_model.msgpack": (
        "weights of Flax",
        "load them with from_flax=True in transformers 4 and save them again",
    ),
    "*.onnx": ("ONNX", "take the folder that it was made of"),
    "*.distcp": (
        "the shards of torch.distributed.checkpoint",
        "make one file of them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
    ),
    "zero_to_fp32.py": ("shards of DeepSpeed", "make one file of them with zero_to_fp32.py"),
    "adapter_model.*": ("an adapter", "adapter_config.json must lie beside it: copy it again"),
    "checkpoint-*": ("the checkpoints of a training", "name the folder of one of them"),
    "optimizer.pt": (
        "the state of a training without its model",
        "save the model with save_pretrained()",
    ),
}


def other_settings(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what a config.json describes, and what to do; None if it may be an ESM-2."""
    kind = str(config.get("model_type")).lower()
    if config.get("quantization_config"):
        return "a quantised model", "save its weights as float32, float16 or bfloat16"
    if kind != "esm":
        return _TYPES.get(kind)
    if config.get("is_folding_model"):
        return "an ESMFold", "name the ESM-2 in it: esm2_t36_3B_UR50D"
    if config.get("position_embedding_type", "absolute") == "absolute":
        return "an ESM-1b" if config.get("emb_layer_norm_before") else "an ESM-1v", _TAKE_ESM2
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "an ESM that is used as a decoder", _TAKE_ESM2
    return None


def other_tensors(names: Collection[str]) -> tuple[str, str] | None:
    """Return which model has tensors of these names, and what to do; None if it may be an ESM-2."""
    for pattern, found in _TENSORS.items():
        if any(re.search(pattern, name) for name in names):
            return found
    # With both, the tables of positions are never used: older versions of transformers made them.
    positions = any(name.endswith("embeddings.position_embeddings.weight") for name in names)
    rotary = any(name.endswith("inv_freq") for name in names)
    return ("an ESM-1v or another ESM-1", _TAKE_ESM2) if positions and not rotary else None


def other_files(folder: Path) -> tuple[str, str] | None:
    """Return what a folder without a model's weights holds instead, and what to do."""
    return next((found for name, found in _FILES.items() if any(folder.glob(name))), None)


def other_file(path: Path) -> tuple[str, str] | None:
    """Return what a file is that cannot be read alone, and what to do; None if it may be."""
    settings = any(path.with_name(name).is_file() for name in ("config.json", ADAPTER))
    if path.suffix == ".safetensors" or (path.suffix == ".bin" and settings):
        return "weights without their settings", "name the folder that it is in"
    return next((found for name, found in _FILES.items() if path.match(name)), None)
