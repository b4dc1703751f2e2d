"""fair-esm's weights by name: which there must be, and how `PackedESM2` holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from packedesm.errors import UserError
from packedesm.esm2.geometry import VOCABULARY, Geometry

ROTARY_BASE = 10_000
EMBEDDINGS = "embed_tokens.weight"
TIED = "lm_head.weight"  # the last matrix of the language head, which is the embeddings

# Our modules, and the fair-esm modules whose weights they hold, stacked.
_LAYER_SOURCES = {
    "attention_norm": ("self_attn_layer_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.out_proj",),
    "mlp_norm": ("final_layer_norm",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")


@dataclass(frozen=True)
class Weights:
    """The encoder of a checkpoint.

    Attributes
    ----------
    state
        Its tensors by fair-esm's names without prefix, mapped from the files: they take memory when
        they are used.
    layout
        In words, what was read and who wrote it so.
    left_out
        What the files hold besides: heads, a pooler.
    heads
        Tensors of the heads for language modelling (``lm_head.``) and contacts
        (``contact_head.``), by fair-esm's names too: what a layout's reader finds, and of what
        `packedesm.esm2.checkpoints.read` returns those that were asked for, checked.
    """

    geometry: Geometry
    state: Mapping[str, torch.Tensor]
    layout: str
    left_out: tuple[str, ...] = ()
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)


def stored_formats(state: Mapping[str, torch.Tensor]) -> str:
    """Return the number formats of tensors in words, without those of rotary frequencies."""
    dtypes = {str(x.dtype) for name, x in state.items() if not name.endswith("inv_freq")}
    return " and ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes))


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every encoder weight in fair-esm's layout, without prefix."""
    width = geometry.width
    rows = {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCABULARY, width)}
    for layer in range(geometry.layers):
        for ours, parts in _LAYER_SOURCES.items():
            weight = (width,) if ours.endswith("norm") else rows.get(ours, (width, width))
            for kind, shape in (("weight", weight), ("bias", weight[:1])):
                shapes |= {f"layers.{layer}.{part}.{kind}": shape for part in parts}
    return shapes | {f"emb_layer_norm_after.{kind}": (width,) for kind in ("weight", "bias")}


def unique(items: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return named tensors by name; ValueError if a name comes twice, by way of two spellings."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in items:
        if name in state:
            raise ValueError(f"tensor {name} comes twice")
        state[name] = tensor
    return state


def spread(state: Mapping[str, torch.Tensor], geometry: Geometry) -> dict[str, torch.Tensor]:
    """Give each layer the rotary frequencies that stand once for all, under a star's name.

    Raises
    ------
    ValueError
        If a layer has others besides.
    """
    shared = frequency_name("*")
    single = [(name, tensor) for name, tensor in state.items() if name != shared]
    if shared not in state:
        return dict(single)
    # Not of a number of layers that no file can hold.
    names = frequency_names(geometry) if geometry.layers <= len(state) else []
    return unique([*single, *((name, state[shared]) for name in names)])


def check_are_tensors(state: Mapping[str, object], source: str) -> None:
    """Raise UserError, naming `source`, if something that has a tensor's name is none."""
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{source}: {name} is no tensor; use a complete ESM-2 checkpoint")


def check_tied(last: torch.Tensor, embeddings: torch.Tensor, source: object) -> None:
    """Raise UserError, naming `source`, unless the head ends in the embeddings.

    fair-esm's model holds one tensor for both. Of a file in which they differ it takes the later
    one, and so other embeddings than the encoder was trained with.
    """
    if last.shape != embeddings.shape or not torch.equal(last.float(), embeddings.float()):
        raise UserError(
            f"{source}: the last matrix of its language head ({TIED}) is not its embeddings "
            f"({EMBEDDINGS}), as in every ESM-2; it was trained untied and cannot be used"
        )


def check_kinds(state: Mapping[str, Any], held_bytes: int, source: str) -> None:
    """Raise UserError, naming `source`, unless all are plain tensors that its files can hold.

    A file of a few bytes can claim tensors of any size: one number, repeated by its strides, or one
    tensor under many names. Nothing of their size is made before this.

    Parameters
    ----------
    state
        What the checkpoint holds by name.
    held_bytes
        Size of its files.
    """
    check_are_tensors(state, source)
    claimed = 0
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if tensor.dtype not in _WEIGHT_DTYPES or not plain or tensor.is_quantized:
            kind = str(tensor.dtype if plain else tensor.layout).removeprefix("torch.")
            raise UserError(
                f"{source}: tensor {name} is {kind}{'' if plain else ', without numbers'}; "
                "save the weights as float32, float16 or bfloat16"
            )
        claimed += tensor.nbytes
    if claimed > held_bytes:
        raise UserError(
            f"{source}: its tensors claim {claimed:,} bytes, the files have {held_bytes:,}; "
            "download or copy it again"
        )


def check_tensors(
    found: Mapping[str, tuple[int, ...]], geometry: Geometry, source: str = "checkpoint"
) -> None:
    """Raise UserError, naming `source`, unless `found` are the tensors of `geometry`.

    Parameters
    ----------
    found
        Shapes by fair-esm's names without prefix. The rotary frequencies may be there or not;
        the heads (``lm_head``, ``contact_head``) are ignored.
    """
    size = f"{geometry.layers} layers, width {geometry.width}, {geometry.heads} heads"
    hint = "use a complete ESM-2 checkpoint whose settings match its weights"
    if geometry.layers > max(1000, len(found)):  # before anything of the claimed size is made
        raise UserError(f"{source}: holds {len(found)} tensors, too few for {size}; {hint}")
    expected = tensor_shapes(geometry)
    optional = dict.fromkeys(frequency_names(geometry), (geometry.head_dim // 2,))
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{source}: tensor {name} is missing (for {size}); {hint}")
        if found[name] != shape:
            raise UserError(
                f"{source}: tensor {name} has shape {list(found[name])}, "
                f"expected {list(shape)} (for {size}); {hint}"
            )
    for name, shape in found.items():
        if name in expected or name.startswith(("lm_head.", "contact_head.")):
            continue
        if name not in optional:
            raise UserError(f"{source}: unexpected tensor {name} (for {size}); {hint}")
        if shape != optional[name]:
            raise UserError(
                f"{source}: tensor {name} has shape {list(shape)}, "
                f"expected {list(optional[name])} (for {size}); {hint}"
            )


def stacked(
    state: Mapping[str, torch.Tensor],
    geometry: Geometry,
    move: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of each weight of `PackedESM2`, from fair-esm's by their names.

    Those that rotary embedding rotates are interleaved, so that the two numbers of a pair adjoin.

    Parameters
    ----------
    move
        Brings one of fair-esm's weights to where it is needed, before anything is made of it: so
        what is mapped from a file goes to a GPU without a copy on the host.
    """
    for ours, sources in _weight_sources(geometry).items():
        moved = {name: move(state[name]) for name in sources}
        parts = [
            _interleave(part, geometry.heads) if _is_rotated(name) else part
            for name, part in moved.items()
        ]
        yield ours, parts[0] if len(parts) == 1 else torch.cat(parts)


def unstacked(
    weights: Mapping[str, torch.Tensor], geometry: Geometry
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield fair-esm's name and tensor of each weight of `PackedESM2`; undoes `stacked`."""
    for ours, sources in _weight_sources(geometry).items():
        for name, part in zip(sources, weights[ours].chunk(len(sources)), strict=True):
            yield name, _undo_interleave(part, geometry.heads) if _is_rotated(name) else part


def rotary_frequencies(state: Mapping[str, torch.Tensor], geometry: Geometry) -> torch.Tensor:
    """Return the checkpoint's rotary frequencies as float32 (head_dim / 2,).

    ESM-2 was trained with frequencies rounded to float16. They are in the published files, and
    fair-esm loads them from there: computing them anew gives other vectors than the reference.

    Raises
    ------
    UserError
        If they differ between layers.
    """
    stored = [state[name].float() for name in frequency_names(geometry) if name in state]
    if not stored:
        # As fair-esm computes them where a file has none.
        exponents = torch.arange(0, geometry.head_dim, 2).float() / geometry.head_dim
        return 1.0 / (ROTARY_BASE**exponents)
    if not all(torch.equal(frequencies, stored[0]) for frequencies in stored):
        raise UserError("checkpoint: rotary frequencies (rot_emb.inv_freq) differ between layers")
    return stored[0]


def frequency_names(geometry: Geometry) -> list[str]:
    """Return fair-esm's name of the rotary frequencies of each layer, without prefix."""
    return [frequency_name(layer) for layer in range(geometry.layers)]


def frequency_name(layer: int | str) -> str:
    """Return fair-esm's name of the rotary frequencies of a layer, without prefix."""
    return f"layers.{layer}.self_attn.rot_emb.inv_freq"


def _weight_sources(geometry: Geometry) -> dict[str, tuple[str, ...]]:
    """Return our weights' names, each with the fair-esm weights that are stacked into it."""
    sources: dict[str, tuple[str, ...]] = {"embed_tokens.weight": ("embed_tokens.weight",)}
    for kind in ("weight", "bias"):
        sources[f"final_norm.{kind}"] = (f"emb_layer_norm_after.{kind}",)
        for layer in range(geometry.layers):
            for module, parts in _LAYER_SOURCES.items():
                sources[f"layers.{layer}.{module}.{kind}"] = tuple(
                    f"layers.{layer}.{part}.{kind}" for part in parts
                )
    return sources


def _is_rotated(name: str) -> bool:
    """Tell whether a fair-esm weight makes numbers that rotary embedding rotates."""
    return any(module in name for module in _ROTATED)


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order each head's outputs 0, Dh/2, 1, Dh/2 + 1, …: the pairs that rotary rotates together."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def _undo_interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order each head's outputs as fair-esm has them: undoes `_interleave`."""
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)
