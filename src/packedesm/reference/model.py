"""The reference: fair-esm, unmodified, float32, one protein at a time."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import esm
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from packedesm.esm2.checkpoints import read
from packedesm.esm2.fair_esm import is_published
from packedesm.esm2.tensor_files import load_archive
from packedesm.esm2.threads import one_thread
from packedesm.esm2.weights import Weights
from packedesm.outputs import CONTACT_HEAD
from packedesm.reference.blocked_attention import blocked
from packedesm.reference.memory import DoesNotFitError, Memory

# Peak memory over the numbers of all tokens' vectors: fair-esm's GELU holds four times four of
# them, the residual stream, q, k, v and the result six more, and they are pooled in float64.
_BYTES_PER_NUMBER = 100
# Peak memory of contacts over the attention weights of all layers and heads: fair-esm stacks them,
# leaves out <eos>, symmetrises, corrects and transposes, and holds seven copies of float32 for it
# (measured: 6.1 to 7.0 with 400 to 1,022 residues, 2 to 12 layers of 20 heads).
_BYTES_PER_WEIGHT = 7 * 4 + 2


class Said(NamedTuple):
    """What fair-esm says of one sequence of `length` residues, float32.

    Attributes
    ----------
    layers : dict
        (length + 2, width) by the number of the layer, as fair-esm counts its ``repr_layers``: the
        first row is that of ``<cls>``, the last that of ``<eos>``.
    logits : ndarray, shape (length + 2, 33)
        In the order of fair-esm's alphabet.
    contacts : ndarray or None, shape (length, length)
        None where they were not asked for.
    """

    layers: dict[int, np.ndarray]
    logits: np.ndarray
    contacts: np.ndarray | None


class Reference:
    """fair-esm's ESM2 with the weights of one checkpoint, on the CPU.

    The attention of long proteins works in blocks, see `packedesm.reference.blocked_attention`;
    not where contacts are asked for, which take the attention weights of all layers at once.

    Parameters
    ----------
    path
        A .pt file in fair-esm's layout, loaded by fair-esm itself, or weights in another layout,
        which are put into fair-esm's model.
    base, needs, regression
        As `packedesm.esm2.checkpoints.read` takes them.

    Attributes
    ----------
    depth
        Layers of the model, and the number of the last.

    Raises
    ------
    UserError
        If the checkpoint cannot be read, does not fit, or lacks a head that is needed.
    """

    def __init__(
        self,
        path: Path,
        base: str | Path | None = None,
        needs: Collection[str] = (),
        regression: str | Path | None = None,
    ) -> None:
        path = Path(path)
        # Checked before fair-esm sees it, whose errors are tracebacks.
        self._heads, weights = frozenset(needs), read(path, base, needs, regression)
        with one_thread():
            self._model = _model(path, weights, regression).eval()
        self._memory = Memory()
        self._converter = self._model.alphabet.get_batch_converter()
        self.depth: int = self._model.num_layers

    def column(self, letter: str) -> int:
        """Return the place of a residue's letter among the 33 tokens, as fair-esm has it."""
        return self._model.alphabet.get_idx(letter)

    def residues(self, sequence: bytes | str) -> np.ndarray:
        """Return the last representation of every residue, float32 (length, width)."""
        return self.representation(sequence)[1:-1]

    def representation(self, sequence: bytes | str) -> np.ndarray:
        """Return the last representation of every token, float32 (length + 2, width).

        As `says` has it for the last layer.
        """
        return self.says(sequence, [self.depth]).layers[self.depth]

    @torch.inference_mode()
    def says(
        self, sequence: bytes | str, layers: Iterable[int] = (), *, contacts: bool = False
    ) -> Said:
        """Return what one pass gives.

        Parameters
        ----------
        sequence
            Residue letters; a str may hold fair-esm's ``<mask>``.
        layers
            Numbers from 0, the embeddings, to `depth`, the last.
        contacts
            Whether they are asked for.

        Raises
        ------
        DoesNotFitError
            If the memory does not hold it.
        ValueError
            If contacts are asked for and their head was not loaded.
        """
        if contacts:
            self.expect(CONTACT_HEAD)
        text = sequence.decode("ascii") if isinstance(sequence, bytes) else sequence
        _, _, tokens = self._converter([("", text)])
        bounded = nullcontext() if contacts else blocked(self._model, tokens.shape[1])
        try:
            size = self._bytes(tokens.shape[1], contacts=contacts)
            with self._memory.holding(size), bounded, one_thread():
                result = self._model(tokens, repr_layers=[*layers], return_contacts=contacts)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise DoesNotFitError from error
        return Said(
            {layer: found[0].numpy() for layer, found in result["representations"].items()},
            result["logits"][0].numpy(),
            result["contacts"][0].numpy() if contacts else None,
        )

    def twin(self, stop: Event) -> Reference:
        """Return another one for another thread, with the same weights in memory.

        What fair-esm keeps beside its weights, such as the rotary phases of the last length, is no
        matter for two threads. After `stop` was set no layer is begun.
        """

        def check(*_call: object) -> None:
            if stop.is_set():
                raise InterruptedError("the reference is no longer asked for")

        other = copy(self)
        shared = {id(tensor): tensor for tensor in self._model.parameters()}
        other._model = deepcopy(self._model, shared)
        for layer in other._model.layers:
            layer.register_forward_pre_hook(check)
        return other

    def expect(self, head: str) -> None:
        """Raise ValueError if a head was not loaded: fair-esm's then holds zeros."""
        if head not in self._heads:
            raise ValueError(f"the {head} is not among what was loaded")

    def _bytes(self, tokens: int, *, contacts: bool) -> int:
        model = self._model
        weights = model.num_layers * model.attention_heads * tokens**2 if contacts else 0
        return tokens * model.embed_dim * _BYTES_PER_NUMBER + weights * _BYTES_PER_WEIGHT


class _NothingDrawn(TorchFunctionMode):
    """Leaves out that fair-esm draws weights at random, all of which it then reads or never uses.

    Of 650 million that takes longer than to read them.
    """

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith(("uniform_", "normal_")):
            return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)


@torch.no_grad()
def _model(path: Path, weights: Weights, regression: str | Path | None) -> esm.ESM2:
    content = None if path.is_dir() else load_archive(path)
    if is_published(content) and "lm_head" in weights.left_out:
        beside = None if regression is None else load_archive(Path(regression))
        with warnings.catch_warnings(), _NothingDrawn():
            # Where there are none nobody asks for contacts: see `Reference.expect`.
            warnings.filterwarnings("ignore", message="Regression weights not found")
            # fair-esm tells ESM-2 from its older models by the beginning of the name.
            return esm.pretrained.load_model_and_alphabet_core("esm2", content, beside)[0]
    geometry = weights.geometry
    with _NothingDrawn():
        model = esm.ESM2(geometry.layers, geometry.width, geometry.heads)
    # `read` has checked what is needed; heads that are not stay zeros, see `Reference.expect`.
    model.load_state_dict({**weights.state, **weights.heads}, strict=False)
    return model
