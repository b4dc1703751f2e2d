"""Let transformers write tiny models in every way, and compute what it makes of the files.

    PYTHONPATH=.models/transformers-5.24 python -m tests.models.write_transformers FOLDER

Each case becomes a folder or file below FOLDER, and ``vectors/CASE.npz`` with the residues' vectors
of every sequence, as transformers computes them from what it wrote, in float32.
"""

import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
)

from tests.models.cases import randomise, save_heads, save_vectors

NEWEST = transformers.__version__ >= "5"
# How to ask for a file that pickle once wrote; transformers 5 has no other than safetensors.
PLAIN = {} if NEWEST else {"safe_serialization": False}
EAGER = {"attn_implementation": "eager"} if transformers.__version__ >= "4.40" else {}
SAFE = {} if NEWEST else {"safe_serialization": True}


def make(kind: type, seed: int, **settings):
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=160,
        max_position_embeddings=1026,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        **settings,
    )
    return randomise(kind(config).eval(), seed)


def vectors(model, tokens):
    """Return what the encoder of a model makes of one sequence."""
    encoder = getattr(model, "esm", model)
    return encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]


def heads(model, tokens):
    """Return what a model for language modelling says of one sequence: logits and contacts."""
    mask = torch.ones_like(tokens)
    return model(input_ids=tokens, attention_mask=mask).logits, model.predict_contacts(tokens, mask)


def write(folder: Path, name: str, kind: type, *, stored=torch.float32, base=1e4, **how) -> None:
    model = make(kind, seed=len(name), rope_theta=base).to(stored)
    model.save_pretrained(folder / name, **how)
    read = kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval()
    save_vectors(folder, name, lambda tokens: vectors(read, tokens))
    if kind is EsmForMaskedLM:
        # How maps are made is what they are asked for by: the fast ways of attention give none.
        plain = kind.from_pretrained(folder / name, torch_dtype=torch.float32, **EAGER).eval()
        save_heads(folder, name, lambda tokens: heads(plain, tokens))


def write_adapters(folder: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    plain = {"target_modules": ["query", "value"], "lora_alpha": 7}
    everything = {
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"layer.0.attention.self.query": 3},
        "lora_alpha": 2,
        "alpha_pattern": {"attention.self.key": 1},
    }
    cases = {
        "lora": plain,
        "lora_everywhere": everything,
        "lora_all_biases": plain | {"bias": "all"},
        "lora_own_biases": plain | {"bias": "lora_only"},
        "lora_norms": plain | {"modules_to_save": ["LayerNorm", "emb_layer_norm_after"]},
        "lora_pickled": plain,
        "lora_of_encoder": plain,  # whose names have no prefix
        "lora_merged": everything,
    }
    base = folder / "base of adapters"
    make(EsmForSequenceClassification, seed=7).bfloat16().save_pretrained(base)
    for name, settings in cases.items():
        kind = EsmModel if name == "lora_of_encoder" else EsmForSequenceClassification
        model = kind.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=4, **settings))
        trained = [p for p in adapted.parameters() if p.requires_grad]
        randomise(trained, seed=len(name))
        if name == "lora_merged":
            model = adapted.merge_and_unload()
            model.save_pretrained(folder / name)
            read = kind.from_pretrained(folder / name, dtype=torch.float32).eval()
        else:
            adapted.save_pretrained(folder / name, safe_serialization=name != "lora_pickled")
            again = kind.from_pretrained(base, dtype=torch.float32)
            read = PeftModel.from_pretrained(again, folder / name).get_base_model().eval()
        save_vectors(folder, name, lambda tokens, read=read: vectors(read, tokens))


def write_state_dicts(folder: Path) -> None:
    """What torch.save is given in people's own loops, with what torch wraps around models."""
    model = make(EsmForMaskedLM, seed=3)
    contents = {"state_dict.pt": model.state_dict()}
    if NEWEST:
        state = torch.compile(model).state_dict()
        contents["compiled.bin"] = {"model_state_dict": state, "epoch": 3}
    for name, content in contents.items():
        torch.save(content, folder / name)
        save_vectors(folder, name, lambda tokens: vectors(model, tokens))


def main(folder: Path) -> None:
    write(folder, "masked_lm", EsmForMaskedLM, **SAFE)
    write(folder, "base", EsmModel, **SAFE)
    write(folder, "sequences", EsmForSequenceClassification, max_shard_size="60KB", **SAFE)
    write(folder, "residues", EsmForTokenClassification, stored=torch.bfloat16, **SAFE)
    write(folder, "half", EsmModel, stored=torch.float16, **SAFE)
    if NEWEST:
        write(folder, "stretched", EsmModel, base=5e4)
        write_adapters(folder)
    else:
        write(folder, "pickled", EsmForMaskedLM, **PLAIN)
        write(folder, "pickled_shards", EsmForMaskedLM, max_shard_size="60KB", **PLAIN)
    write_state_dicts(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
