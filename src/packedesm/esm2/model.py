"""ESM-2 on packed proteins: no padding, one dense matrix per linear layer.

The arithmetic follows fair-esm (https://github.com/facebookresearch/esm, MIT licence) operation
by operation; three things are arranged differently and change no result beyond rounding. The
projections to q, k and v are one matrix. The outputs of q and k are ordered so that the two
numbers that rotary embedding turns together are neighbours, which makes the turn one complex
multiplication; a scalar product does not depend on the order. And there is no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from packedesm.alphabet import MASK
from packedesm.errors import UserError
from packedesm.esm2.attention import TURNING, varlen_attention
from packedesm.esm2.linear import linear, linear_add, linear_gelu
from packedesm.esm2.registry import VOCABULARY, Geometry

TRAINED_KEPT = 1 - 0.15 * 0.8  # share of embeddings that training's masking left in place
ROTARY_BASE = 10_000


# Our modules, and the fair-esm modules whose weights they hold, stacked.
_LAYER_SOURCES = {
    "attention_norm": ("self_attn_layer_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.out_proj",),
    "mlp_norm": ("final_layer_norm",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
_FREQUENCIES = "layers.{}.self_attn.rot_emb.inv_freq"


class PackedESM2(nn.Module):
    """ESM-2's encoder on packed proteins.

    Weights are made on the meta device: build a usable model with `from_fair_esm`. They ask for no
    gradients until `requires_grad_()` says so; then `forward_packed` can be differentiated.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(VOCABULARY, geometry.width)
            self.layers = nn.ModuleList(_Layer(geometry) for _ in range(geometry.layers))
            self.final_norm = nn.LayerNorm(geometry.width)
            frequency_bits = torch.empty(geometry.head_dim // 2, dtype=torch.int32)
        # Kept as bits: a cast of the module to half precision would round a float buffer, and
        # the phases of a long protein would then be off by radians.
        self.register_buffer("frequency_bits", frequency_bits)
        self.requires_grad_(False)

    @classmethod
    def from_fair_esm(
        cls,
        state: Mapping[str, torch.Tensor],
        geometry: Geometry,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PackedESM2:
        """Return a model with the weights of fair-esm's ESM2, as `dtype` on `device`.

        Parameters
        ----------
        state
            Tensors by fair-esm's names without prefix, such as ``layers.0.fc1.weight``; the heads
            for language modelling and contacts may be among them and are left out.

        Raises
        ------
        UserError
            If a tensor is missing, unexpected or has another shape than `geometry` gives.
        """
        check_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, geometry)
        weights = {
            name: _stack(state, sources, geometry.heads).to(device, dtype, copy=True)
            for name, sources in _weight_sources(geometry).items()
        }
        frequencies = _stored_frequencies(state, geometry)
        weights["frequency_bits"] = frequencies.view(torch.int32).to(device, copy=True)
        model = cls(geometry)
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    def fair_esm_state(self) -> dict[str, torch.Tensor]:
        """Return the weights by fair-esm's names, without prefix; undoes `from_fair_esm`."""
        weights, heads = self.state_dict(), self.geometry.heads
        state = {}
        for name, sources in _weight_sources(self.geometry).items():
            parts = weights[name].chunk(len(sources))
            for source, part in zip(sources, parts, strict=True):
                state[source] = _undo_interleave(part, heads) if _is_rotated(source) else part
        for layer in range(self.geometry.layers):
            state[_FREQUENCIES.format(layer)] = weights["frequency_bits"].view(torch.float32)
        return state

    def forward_packed(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        attention: str = "sdpa",
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return the last representation of every token, as fair-esm's after its last LayerNorm.

        Nothing here waits for the device, given `lengths` or a backend that does not need them.

        Parameters
        ----------
        input_ids
            int64 (total_tokens,), ``<cls>`` and ``<eos>`` of every sequence included.
        positions
            int64 (total_tokens,), from 0 in each sequence.
        cu_seqlens
            int32 (sequences + 1,), where each sequence begins, then the total.
        max_seqlen
            Tokens of the longest sequence.
        attention
            A backend of `packedesm.esm2.attention`.
        lengths
            The sequences' lengths in tokens on the host.

        Returns
        -------
        torch.Tensor
            Shape (total_tokens, width), dtype of the weights.
        """
        attend = partial(
            varlen_attention,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            backend=attention,
            lengths=lengths,
        )
        phases = self._phases(positions)
        if attention in TURNING:
            attend, phases = partial(attend, phases=phases), None
        x = self._embed(input_ids, cu_seqlens)
        for layer in self.layers:
            x = _finish(layer, x, attend(*_project(layer, x, phases)))
        return self.final_norm(x)

    def _embed(self, input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Return embeddings (T, width) after token dropout, which ESM-2 applies at inference too.

        ``<mask>`` is zero, and every sequence is scaled by 0.88 / (1 - masked / tokens), tokens
        counting ``<cls>`` and ``<eos>``: what remains is as large as it was in training.
        """
        masked = input_ids == MASK
        masked_before = F.pad(masked.cumsum(0), (1, 0))[cu_seqlens]
        tokens = cu_seqlens.diff()
        scale = TRAINED_KEPT / (1 - masked_before.diff() / tokens)
        scale = scale.repeat_interleave(tokens, output_size=len(input_ids))
        scale = scale.masked_fill(masked, 0)
        # A float32 scale promotes half-precision embeddings: one rounding, not two.
        return (self.embed_tokens(input_ids) * scale[:, None]).to(self.embed_tokens.weight.dtype)

    def _phases(self, positions: torch.Tensor) -> torch.Tensor:
        """Return e^(i position frequency), complex64 (T, 1, 1, head_dim / 2)."""
        angles = positions.float()[:, None] * self.frequency_bits.view(torch.float32)
        return torch.complex(angles.cos(), angles.sin())[:, None, None]


class _Layer(nn.Module):
    """One transformer layer, LayerNorm before each half."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width = geometry.width
        self.heads = geometry.heads
        self.attention_norm = nn.LayerNorm(width)  # eps 1e-5, as fair-esm's
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)


def _project(
    layer: _Layer, x: torch.Tensor, phases: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, and v, (T, H, Dh) each: a layer up to its attention.

    q and k are turned by `phases`, if the attention is not to do it.
    """
    qkv = linear(layer.attention_norm(x), layer.qkv).unflatten(1, (3, layer.heads, -1))
    if phases is None:
        return qkv.unbind(1)
    q, k = _rotate(qkv[:, :2], phases).unbind(1)
    return q, k, qkv[:, 2]


def _finish(layer: _Layer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Return `x` (T, width) after a layer, from its attention on.

    `x` is overwritten unless gradients need it.
    """
    x = linear_add(attended.flatten(1), layer.attention_out, x)
    return linear_add(linear_gelu(layer.mlp_norm(x), layer.fc1), layer.fc2, x)


def _rotate(qk: torch.Tensor, phases: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbours in `qk` (T, 2, H, Dh) by its phase, in float32.

    float32 input may be overwritten unless gradients need it.

    Parameters
    ----------
    phases
        complex64 (T, 1, 1, Dh / 2).
    """
    pairs = torch.view_as_complex(qk.float().unflatten(-1, (-1, 2)))
    turned = pairs * phases if pairs.requires_grad else pairs.mul_(phases)
    return torch.view_as_real(turned).flatten(-2).to(qk.dtype)


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every encoder weight in fair-esm's layout, without prefix."""
    sources = _weight_sources(geometry)
    return {
        part: (weight.shape[0] // len(sources[name]), *weight.shape[1:])
        for name, weight in PackedESM2(geometry).named_parameters()
        for part in sources[name]
    }


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
    expected = tensor_shapes(geometry)
    optional = {_FREQUENCIES.format(n): (geometry.head_dim // 2,) for n in range(geometry.layers)}
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


def _weight_sources(geometry: Geometry) -> dict[str, tuple[str, ...]]:
    """Return our weights' names, each with the fair-esm weights that are stacked into it."""
    sources = {"embed_tokens.weight": ("embed_tokens.weight",)}
    for kind in ("weight", "bias"):
        sources[f"final_norm.{kind}"] = (f"emb_layer_norm_after.{kind}",)
        for layer in range(geometry.layers):
            for module, parts in _LAYER_SOURCES.items():
                sources[f"layers.{layer}.{module}.{kind}"] = tuple(
                    f"layers.{layer}.{part}.{kind}" for part in parts
                )
    return sources


def _stack(state: Mapping[str, torch.Tensor], sources: tuple[str, ...], heads: int) -> torch.Tensor:
    """Return the fair-esm weights `sources` as one, those that rotary turns interleaved."""
    parts = [
        _interleave(state[name], heads) if _is_rotated(name) else state[name] for name in sources
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_rotated(name: str) -> bool:
    """Tell whether a fair-esm weight makes numbers that rotary embedding turns."""
    return any(module in name for module in _ROTATED)


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order each head's outputs 0, Dh/2, 1, Dh/2 + 1, …: the pairs that rotary turns together."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def _undo_interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order each head's outputs as fair-esm has them: undoes `_interleave`."""
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _stored_frequencies(state: Mapping[str, torch.Tensor], geometry: Geometry) -> torch.Tensor:
    """Return the checkpoint's rotary frequencies as float32 (head_dim / 2,).

    ESM-2 was trained with frequencies rounded to float16. They are in the published files, and
    fair-esm loads them from there: computing them anew gives other vectors than the reference.
    """
    names = [_FREQUENCIES.format(layer) for layer in range(geometry.layers)]
    stored = [state[name].float() for name in names if name in state]
    if not stored:
        return _frequencies(geometry)
    if not all(torch.equal(frequencies, stored[0]) for frequencies in stored):
        raise UserError("checkpoint: rotary frequencies (rot_emb.inv_freq) differ between layers")
    return stored[0]


def _frequencies(geometry: Geometry) -> torch.Tensor:
    """Return the rotary frequencies, float32 (head_dim / 2,), computed as fair-esm does."""
    exponents = torch.arange(0, geometry.head_dim, 2).float() / geometry.head_dim
    return 1.0 / (ROTARY_BASE**exponents)
