"""ESM-2 on packed proteins: no padding, one dense matrix per linear layer.

The arithmetic follows fair-esm (https://github.com/facebookresearch/esm, MIT licence) operation
by operation; three things are arranged differently and change no result beyond rounding. The
projections to q, k and v are one matrix. The outputs of q and k are ordered so that the two
numbers that rotary embedding rotates together are neighbours, which makes the rotation one complex
multiplication; a scalar product does not depend on the order. And there is no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn

from packedesm.esm2.attention import WITH_ROTARY, Sequences, attend
from packedesm.esm2.contacts import ContactHead, Taps
from packedesm.esm2.geometry import VOCABULARY, Geometry
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.int8 import INT8
from packedesm.esm2.residual import Int8Residual, Layer, Residual, Stream, fused_kernels
from packedesm.esm2.steps import FURTHEST, KERNELS, TRAINED_KEPT, embed, phases, rotate
from packedesm.esm2.weights import (
    check_tensors,
    frequency_names,
    rotary_frequencies,
    stacked,
    unstacked,
)


class PackedESM2(nn.Module):
    """ESM-2's encoder on packed proteins.

    Weights are made on the meta device: build a usable model with `from_fair_esm`. They ask for no
    gradients until `requires_grad_()` says so; then `forward_packed` can be differentiated.

    Attributes
    ----------
    fused, fused_gelu
        Whether `packedesm.esm2.triton_kernels` do the steps between products, and whether one of
        them does the feed-forward part's first product with its GELU: on a GPU, without gradients;
        `packedesm.esm2.fused` tells where they work, and `use_kernels` sets both.
    mixed
        None where all weights are of one dtype. Where `packedesm.esm2.quantise` made products int8,
        the dtype of those that are not, and of q, k and v; all else is float32.
    language_head, contact_head
        The model's heads, each None unless its weights were given to `from_fair_esm`; float32,
        whatever the encoder is cast to.
    """

    frequency_bits: torch.Tensor
    language_head: LanguageModelHead | None
    contact_head: ContactHead | None

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.fused = self.fused_gelu = False
        self.mixed: torch.dtype | None = None
        with torch.device("meta"):
            # Given its weight, which it would else initialise: on the meta device that imports the
            # whole of torch's compiler.
            weight = torch.empty(VOCABULARY, geometry.width)
            self.embed_tokens = nn.Embedding(VOCABULARY, geometry.width, _weight=weight)
            self.layers = nn.ModuleList(Layer(geometry) for _ in range(geometry.layers))
            self.final_norm = nn.LayerNorm(geometry.width)
            frequency_bits = torch.empty(geometry.head_dim // 2, dtype=torch.int32)
        # Kept as bits: a cast of the module to half precision would round a float buffer, and
        # the phases of a long protein would then be off by radians.
        self.register_buffer("frequency_bits", frequency_bits)
        self.language_head = self.contact_head = None
        self.requires_grad_(False)

    @classmethod
    def from_fair_esm(
        cls,
        state: Mapping[str, torch.Tensor],
        geometry: Geometry,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        heads: Mapping[str, torch.Tensor] | None = None,
    ) -> PackedESM2:
        """Return a model with the weights of fair-esm's ESM2, as `dtype` on `device`.

        Parameters
        ----------
        state
            Tensors by fair-esm's names without prefix, such as ``layers.0.fc1.weight``; the heads
            for language modelling and contacts may be among them and are left out.
        heads
            Those of the heads that the model shall have, such as ``lm_head.dense.weight``: all of
            one, or none.

        Raises
        ------
        UserError
            If a tensor is missing, unexpected or has another shape than `geometry` gives.
        """
        check_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, geometry)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = tensor.to(device)
            return moved.to(dtype, copy=moved is tensor)

        weights = dict(stacked(state, geometry, move))
        frequencies = rotary_frequencies(state, geometry)
        weights["frequency_bits"] = frequencies.view(torch.int32).to(device, copy=True)
        model = cls(geometry)
        model.load_state_dict(weights, assign=True)
        if heads and any(name.startswith("lm_head.") for name in heads):
            language = LanguageModelHead.from_fair_esm(heads, "lm_head.")
            language.complete(state["embed_tokens.weight"], dtype)
            model.language_head = language.to(device)
        if heads and any(name.startswith("contact_head.") for name in heads):
            model.contact_head = ContactHead.from_fair_esm(heads, geometry.heads).to(device)
        return model.requires_grad_(False).eval()

    def fair_esm_state(self) -> dict[str, torch.Tensor]:
        """Return the weights by fair-esm's names, without prefix; undoes `from_fair_esm`.

        Raises
        ------
        ValueError
            If some products are int8: their weights are gone.
        """
        if self.mixed is not None:
            raise ValueError("weights of products in int8 cannot be told")
        weights = self.state_dict()
        frequencies = weights["frequency_bits"].view(torch.float32)
        state = dict(unstacked(weights, self.geometry))
        return state | dict.fromkeys(frequency_names(self.geometry), frequencies)

    @property
    def frequencies(self) -> torch.Tensor:
        """Of rotary embedding, float32 (head_dim / 2,), whatever the dtype of the weights is."""
        return self.frequency_bits.view(torch.float32)

    @property
    def number_format(self) -> str:
        """In which it computes: ``int8`` if some of its products are, else that of its weights."""
        return INT8 if self.mixed else str(self.embed_tokens.weight.dtype).removeprefix("torch.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of q, k and v, and of products that are not int8."""
        return self.mixed or self.embed_tokens.weight.dtype

    @property
    def kernels(self) -> str:
        """The kernels that do their steps, by the name in log and report: a key of `KERNELS`."""
        return next(name for name, does in KERNELS.items() if does == (self.fused, self.fused_gelu))

    def use_kernels(self, name: str) -> None:
        """Let these kernels do their steps from now on."""
        self.fused, self.fused_gelu = KERNELS[name]

    def forward_packed(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        attention: str = "sdpa",
        lengths: Sequence[int] | None = None,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """Return the last representation of every token, as fair-esm's after its last LayerNorm.

        Nothing here waits for the device, given `lengths` or a backend that does not need them.

        Parameters
        ----------
        input_ids
            int32 or int64 (total_tokens,), ``<cls>`` and ``<eos>`` of every sequence included.
        positions
            int32 or int64 (total_tokens,), from 0 in each sequence.
        cu_seqlens
            int32 (sequences + 1,), where each sequence begins, then the total.
        max_seqlen
            Tokens of the longest sequence.
        attention
            A backend of `packedesm.esm2.attention`.
        lengths
            The sequences' lengths in tokens on the host.
        taps
            What looks on as the pass goes by.

        Returns
        -------
        torch.Tensor
            Shape (total_tokens, width), dtype of the embeddings.
        """
        sequences = Sequences(cu_seqlens, max_seqlen, lengths)
        split, rotary = self._rotation(positions, max_seqlen, attention)
        layers = [*cast(Iterable[Layer], self.layers)]
        following = [*(layer.attention_norm for layer in layers[1:]), self.final_norm]
        stream = self._stream(self._embed(input_ids, sequences), layers[0].attention_norm, taps)
        for number, (layer, norm) in enumerate(zip(layers, following, strict=True)):
            if taps is not None and taps.layer is not None:
                taps.layer(number, stream.x)
            # What a step made gets no name that outlives it: it would take memory from the next.
            q, k, v = split(stream.qkv(layer).unflatten(1, (3, layer.heads, -1)))
            if taps is not None and taps.contacts is not None:
                taps.contacts.add(number, q, k, rotary)
            attended = attend(attention, q, k, v, sequences, rotary).flatten(1)
            del q, k, v
            stream.add_attention(layer, attended)
            del attended
            stream.add_feed_forward(layer, norm)
        return stream.normed

    def _stream(self, x: torch.Tensor, norm: nn.LayerNorm, taps: Taps | None) -> Stream:
        if self.mixed is not None:
            return Int8Residual(x, norm, self.mixed)
        return Residual(x, norm, self.fused, self.fused_gelu, taps)

    def _embed(self, input_ids: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        cu_seqlens, weight = sequences.cu_seqlens, self.embed_tokens.weight
        if self.fused:
            return fused_kernels().embed(
                input_ids, cu_seqlens, sequences.max_seqlen, weight, kept=TRAINED_KEPT
            )
        return embed(input_ids, cu_seqlens, weight)

    def _rotation(
        self, positions: torch.Tensor, max_seqlen: int, attention: str
    ) -> tuple[Callable[[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor | None]:
        """Return how to rotate q and k: before they are read, or while they are.

        That is a function which splits the projection (T, 3, H, Dh) into q, k and v, (T, H, Dh)
        each, with q and k rotated, and nothing for the attention to do; or one which only splits,
        and the phases that `attention` shall rotate by.
        """
        if self.fused and max_seqlen <= FURTHEST:
            return partial(_split_fused, positions=positions, frequencies=self.frequencies), None
        rotary = phases(positions, self.frequencies)
        if attention in WITH_ROTARY:
            return partial(torch.Tensor.unbind, dim=1), rotary
        return partial(_split_rotated, rotary=rotary), None


def _split_fused(
    qkv: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor
) -> Sequence[torch.Tensor]:
    fused_kernels().rotate_(qkv, positions, frequencies)
    return qkv.unbind(1)


def _split_rotated(qkv: torch.Tensor, rotary: torch.Tensor) -> Sequence[torch.Tensor]:
    q, k = rotate(qkv[:, :2], rotary).unbind(1)
    return q, k, qkv[:, 2]
