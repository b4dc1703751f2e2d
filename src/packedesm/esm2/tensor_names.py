"""Names of ESM-2's tensors: those that other programs give them, and fair-esm's, used here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from packedesm.errors import UserError
from packedesm.esm2.other_models import other_tensors
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD

# Hugging Face's names and, for layers, those after "encoder.layer.N."; then fair-esm's.
HUGGING_FACE_NAMES = {
    "embeddings.word_embeddings": "embed_tokens",
    "encoder.emb_layer_norm_after": "emb_layer_norm_after",
    # One table for all layers, as transformers 5 has it. Its files call the layer a star.
    "rotary_embeddings": "layers.*.self_attn.rot_emb",
}
HUGGING_FACE_LAYER_NAMES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.self.rotary_embeddings": "self_attn.rot_emb",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "LayerNorm": "final_layer_norm",
}
# Of the heads, where they have others than fair-esm's: its last matrix is tied to the embeddings.
_HEAD_NAMES = {"lm_head.decoder.weight": "lm_head.weight"}
PREFIXES = {LANGUAGE_HEAD: "lm_head.", CONTACT_HEAD: "contact_head."}  # of their names
HEADS = tuple(PREFIXES.values())
# What precedes names in fair-esm's files; longest first: the first prefix that fits is cut off.
_OF_FAIR_ESM = ("encoder.sentence_encoder.", "encoder.")
_KINDS = {"gamma": "weight", "beta": "bias"}  # of LayerNorms, as transformers 5 writes them
# Heads, a pooler that is never trained, and tables that ESM-2 does not use.
_NOT_NEEDED = (
    "lm_head.",
    "classifier.",
    "contact_head.",
    "pooler.",
    "embeddings.position_ids",
    "embeddings.position_embeddings.",
)
# What torch puts between a module and what it wraps: torch.compile, DDP, FSDP, checkpointing.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# An encoder has the first, and one of its first layer.
_EMBEDDINGS = ("embed_tokens.weight", "embeddings.word_embeddings.weight")
_FIRST_LAYER = ("layers.0.self_attn.q_proj.weight", "encoder.layer.0.attention.self.query.weight")


@dataclass(frozen=True)
class Renamed:
    """The tensors of one encoder among those of a file.

    Attributes
    ----------
    prefix
        What precedes the encoder's names.
    ours
        Pairs of a name in the file and fair-esm's without prefix. What is unknown inside the
        encoder keeps its name.
    left_out
        What no vector needs, such as ``lm_head``: heads, and whatever stands outside the encoder.
    heads
        Such pairs of the encoder's heads for language modelling and contacts.
    """

    prefix: str
    ours: list[tuple[str, str]]
    left_out: tuple[str, ...]
    heads: list[tuple[str, str]]


def without_prefix(name: str) -> str:
    """Return a tensor's name without what precedes it in fair-esm's files; TypeError of none."""
    if not isinstance(name, str):
        raise TypeError(f"text in the name {name!r}")
    for prefix in _OF_FAIR_ESM:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def renamed(names: Collection[object], source: str) -> Renamed:
    """Find the encoder among tensors by their names, in fair-esm's or Hugging Face's spelling.

    Raises
    ------
    UserError
        Naming `source`, if there is none, more than one, or one of another model.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in names if isinstance(name, str)}
    if len(plain) < len(names):
        wrong = next(name for name in names if not isinstance(name, str))
        raise UserError(f"{source}: no text in the name {wrong!r}; download or copy it again")
    prefix = _prefix(set(plain.values()), source)
    if other := other_tensors([name for name in plain.values() if name.startswith(prefix)]):
        raise UserError(f"{source}: is {other[0]}; {other[1]}")
    ours, left_out = [], set()
    for name, unwrapped in plain.items():
        inside = unwrapped.startswith(prefix)
        short = unwrapped.removeprefix(prefix)
        found = fair_esm_name(short)
        # What has an encoder's name but stands beside it would otherwise be passed over.
        if found is not None and (inside or found != short):
            ours.append((name, found))
        else:
            parts = short.split(".")
            left_out.add(".".join(parts[: 2 if parts[0] == "embeddings" else 1]))
    return Renamed(prefix, ours, tuple(sorted(left_out)), [*_heads(plain, prefix)])


def _heads(plain: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield a name in the file and fair-esm's of each tensor of the heads.

    They stand in the encoder, as fair-esm has them, or beside the ``esm`` that Hugging Face's model
    for language modelling holds.
    """
    beside = [prefix.removesuffix("esm.")] if f".{prefix}".endswith(".esm.") else []
    for head in HEADS:
        for place in [prefix, *beside]:
            found = [
                (name, head_name(unwrapped.removeprefix(place)))
                for name, unwrapped in plain.items()
                if unwrapped.startswith(place + head)
            ]
            yield from found
            if found:
                break


def _prefix(names: set[str], source: str) -> str:
    found = [
        name.removesuffix(end)
        for name in sorted(names)
        for end in _EMBEDDINGS
        if name == end or name.endswith(f".{end}")
    ]
    whole = [prefix for prefix in found if any(prefix + name in names for name in _FIRST_LAYER)]
    if not whole:
        what, advice = other_tensors(names) or (
            f"no ESM-2 (it holds {_few(names)})",
            "name a checkpoint of an ESM-2 model",
        )
        raise UserError(f"{source}: is {what}; {advice}")
    if len(whole) > 1:
        raise UserError(
            f"{source}: holds {len(whole)} encoders ({_few(whole)}); save the one that you want "
            "in a file of its own"
        )
    return whole[0]


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(name[:80] or "one without prefix" for name in ordered[:3])
    return f"{shown}, …" if len(ordered) > 3 else shown or "no tensor"


def head_name(name: str) -> str:
    """Return fair-esm's name of a tensor of a head, without prefix."""
    module, _, kind = name.rpartition(".")
    return _HEAD_NAMES.get(name) or f"{module}.{_KINDS.get(kind, kind)}"


def fair_esm_name(name: str) -> str | None:
    """Return fair-esm's name of a tensor; None if it is not needed, itself if it is unknown."""
    if name.startswith(_NOT_NEEDED):
        return None
    module, _, kind = name.rpartition(".")
    kind = _KINDS.get(kind, kind)
    layer = re.fullmatch(r"encoder\.layer\.(\d+|\*)\.(.+)", module)
    if layer and layer[2] in HUGGING_FACE_LAYER_NAMES:
        return f"layers.{layer[1]}.{HUGGING_FACE_LAYER_NAMES[layer[2]]}.{kind}"
    return f"{HUGGING_FACE_NAMES[module]}.{kind}" if module in HUGGING_FACE_NAMES else name
