"""A model that a program keeps for many calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from packedesm.device.auto import Ways, load_fitting, resolve_dtype, select_ways, settle
from packedesm.device.auto import load_model as load_weights
from packedesm.device.token_budget import Workload
from packedesm.errors import UserError, quote
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.contacts import Taps
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import DEMO, Checkpoint
from packedesm.notebook.embeddings import Embeddings
from packedesm.notebook.place import find_device
from packedesm.notebook.request import CallKeys, call_options, resolved, with_keys
from packedesm.notebook.run import Show, embed_records, on
from packedesm.notebook.source import Sequences, source_of
from packedesm.options import EmbedOptions, EmbedPlan, JobOptions
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD, heads_of
from packedesm.packing.batch import PackedBatch
from packedesm.sequences.records import records_of

# Fewer tokens are one pack under any budget that a GPU would be measured for.
_ONE_PACK = 4096
_HEADS = (LANGUAGE_HEAD, CONTACT_HEAD)


class EmbeddingModel(nn.Module):
    """An ESM-2 that is kept: for `embed`, or as a part of what you train.

    It is a torch module as any other: ``to``, ``half``, ``state_dict``, ``requires_grad_`` and
    ``parameters`` do what they always do. Its weights ask for no gradients until
    ``requires_grad_()`` says so. `embed` follows the device and the number format that they have
    when it is called, and their values, also after training.

    Several threads may call `embed` at once; they share the device, and are no faster together.

    Parameters
    ----------
    esm2
        The model.
    checkpoint
        Where its weights come from.
    attention
        A backend of `packedesm.esm2.attention`, or ``auto``.
    checkpoints
        Folder of downloaded models, for heads that are loaded later.

    Attributes
    ----------
    esm2 : packedesm.PackedESM2
        The model itself.
    checkpoint : packedesm.esm2.registry.Checkpoint
        Which weights were loaded.

    Examples
    --------
    >>> import packedesm
    >>> model = packedesm.load_model("esm2_t6_3M_demo", device="cpu")
    >>> model.embed(["MKTAYIAKQR", "GIGAVLKVLTTGLPALISWIKRKRQQ"]).array("mean").shape
    (2, 192)
    """

    def __init__(
        self,
        esm2: PackedESM2,
        checkpoint: Checkpoint,
        attention: str = "auto",
        checkpoints: str = "auto",
    ) -> None:
        super().__init__()
        self.esm2 = esm2
        self.checkpoint = checkpoint
        self._attention = attention
        self._checkpoints = checkpoints
        self._ways: dict[tuple[torch.dtype, torch.device], Ways] = {}
        self._dtype_reason = "the weights' own"

    @property
    def geometry(self) -> Geometry:
        """Layers, width and heads."""
        return self.esm2.geometry

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.esm2.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights, which is that of the computation."""
        return self.esm2.embed_tokens.weight.dtype

    @with_keys(CallKeys)
    def embed(
        self,
        sequences: Sequences,
        outputs: str | Sequence[str] = ("mean",),
        *,
        layers: int | str | Sequence[int | str] = ("last",),
        progress: Show = True,
        **keys: Unpack[CallKeys],
    ) -> Embeddings:
        """Embed proteins with this model; see `packedesm.embed`, which loads one besides.

        Examples
        --------
        >>> import packedesm
        >>> model = packedesm.load_model(device="cpu")
        >>> found = model.embed({"melittin": "GIGAVLKVLTTGLPALISWIKRKRQQ"}, "residue", layers=3)
        >>> found.residues("melittin", layer=3).shape
        (26, 192)
        """
        found = resolved("embed", {**keys, "outputs": outputs, "layers": layers}, CallKeys)
        shard, options = call_options(found, self.geometry.layers)
        source = source_of(sequences)
        self.load_heads(*heads_of(options.arrays))
        records = records_of(source, shard)
        return embed_records(self, records, options, JobOptions.of(found), progress)

    def forward_packed(
        self,
        batch: PackedBatch,
        visit: Callable[[int, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Return the last representation of every token of a pack: (tokens, width).

        With weights that ask for gradients it can be differentiated.

        Parameters
        ----------
        batch
            From `packedesm.pack`, on any device.
        visit
            As `packedesm.PackedESM2.forward_packed` takes it.

        Raises
        ------
        UserError
            If `batch` is no pack.
        """
        if not isinstance(batch, PackedBatch):
            raise UserError(
                f"batch: is of type {type(batch).__name__}, not a pack; give "
                "packedesm.pack([...]), or call model.embed([...]) for the vectors of sequences"
            )
        # The fastest backends, on a CPU and on the newest GPUs, have no gradients.
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        attention = "sdpa" if trained else self._way().attention.name
        if batch.numbers.device != self.device:
            batch = batch.to(self.device)
        return self.esm2.forward_packed(**batch.inputs, attention=attention, taps=Taps(visit))

    forward = forward_packed

    def load_heads(self, *heads: str) -> None:
        """Load heads that the model lacks: ``language head``, ``contact head``.

        `embed` does so for outputs that need one. Who trains a head loads it before its parameters
        are collected; it is then ``esm2.language_head`` or ``esm2.contact_head``.

        Raises
        ------
        UserError
            If there is no such head, the checkpoint has none, or it is another one by now.
        """
        for head in heads:
            if head not in _HEADS:
                raise UserError(f"load_heads(): {quote(str(head))} is none of {', '.join(_HEADS)}")
        missing = [head for head in heads if getattr(self.esm2, head.replace(" ", "_")) is None]
        if not missing:
            return
        checkpoint = prepare(self.checkpoint.model, self._checkpoints, missing)
        if checkpoint.path != self.checkpoint.path or checkpoint.bytes != self.checkpoint.bytes:
            raise UserError(f"{checkpoint.path}: is not what was loaded; load the model again")
        dtype = str(self.dtype).removeprefix("torch.")
        loaded = load_fitting(checkpoint, dtype, "torch", torch.device("cpu"), missing)
        for head in missing:
            name = head.replace(" ", "_")
            setattr(self.esm2, name, getattr(loaded, name).to(self.device))
        self.checkpoint = checkpoint

    def plan(self, options: EmbedOptions, workload: Workload) -> EmbedPlan:
        """Return what options come to with the weights as they are now."""
        if options.token_budget == "auto" and workload.tokens <= _ONE_PACK:
            options = replace(options, token_budget=_ONE_PACK)  # measuring would take longer
        ways, reason = self._way(), self._dtype_reason
        with on(self.device):
            return settle(self.esm2, ways, options, workload, dtype_reason=reason)

    def computing(self, plan: EmbedPlan) -> PackedESM2:
        """Return the model with the kernels of a plan; the weights are the same tensors.

        The kernels have no gradients, so the model itself does without.
        """
        model = copy.copy(self.esm2)
        model.use_kernels(plan.kernels)
        return model

    def in_float32(self, device: torch.device, heads: Collection[str] = ()) -> PackedESM2:
        """Return the model in float32 on a device, with these heads.

        Those weights are read from the checkpoint, more exact than half precision has kept them;
        if they are others by now, they are converted.
        """
        try:
            model = load_weights(self.checkpoint, torch.float32, device, heads)
        except UserError:  # the file is gone, or another one
            if self.esm2.mixed is not None:
                raise
            return copy.deepcopy(self.esm2).to(device, torch.float32)
        if self.esm2.mixed is not None:  # nothing can have changed the weights
            return model
        now = self.esm2.state_dict()
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor.to(now[name].dtype), now[name].to(device)):
                del model, tensor
                return copy.deepcopy(self.esm2).to(device, torch.float32)
        return model

    def _way(self) -> Ways:
        key = (self.esm2.compute_dtype, self.device)
        if key not in self._ways:
            with on(self.device):  # kernels are tried on the GPU that torch uses
                self._ways[key] = select_ways(self._attention, self.geometry, *key)
        return self._ways[key]


def load_model(
    model: str | Path = DEMO,
    dtype: str = "auto",
    device: str | torch.device = "auto",
    *,
    checkpoints: str | Path = "auto",
    attention: str = "auto",
    check: bool = True,
) -> EmbeddingModel:
    """Load a model to keep for many calls.

    Parameters
    ----------
    model
        A name that ``packedesm models`` lists, or the path of an ESM-2, as the command takes it. A
        published model that is not here yet is downloaded.
    dtype
        Number format of the computation: ``float32``, ``bfloat16``, ``float16``; ``int8`` on a CPU,
        for `embed` alone, which is not for training; or ``auto``,
        float32 on a CPU, and on a GPU float16, or where the weights do not bear it bfloat16, then
        float32.
    device
        ``cpu``, ``cuda``, ``cuda:1`` or such; or ``auto``, the GPU that torch uses where there is
        one. It is not leased: a notebook that stands open would keep jobs from it.
    checkpoints
        Folder of downloaded models; ``auto`` is where fair-esm keeps them.
    attention
        A backend of `packedesm.esm2.attention`, or ``auto``.
    check
        Compare three short proteins with fair-esm, once, as each job of a run does before it
        begins. That reads the weights a second time, and is left out, which is logged, where memory
        does not hold them twice. It is of mean vectors, which all layers go into. The heads for
        ``logits``, ``contacts`` and the like are read when a call first needs one, when training
        may have changed the weights; they are not compared here, but in each run of the command.

    Returns
    -------
    EmbeddingModel
        Whose weights ask for no gradients.

    Raises
    ------
    UserError
        If there is no such model or device, or the number format does not fit device or weights.
    Fault
        If memory does not hold the weights, or the device computes wrong.

    Examples
    --------
    >>> import packedesm
    >>> model = packedesm.load_model("esm2_t6_3M_demo", device="cpu")
    >>> model.geometry.layers, model.dtype
    (6, torch.float32)
    >>> packed = packedesm.pack(["MKTAYIAKQR", "GIGAVLKVLTTGLPALISWIKRKRQQ"])
    >>> model.forward_packed(packed).shape  # 10 + 2 and 26 + 2 tokens
    torch.Size([40, 192])
    """
    place = find_device(device)
    if not isinstance(model, str | Path):
        raise UserError(
            f"model: is of type {type(model).__name__}; give a name that `packedesm models` lists, "
            "or the path of one"
        )
    asked = {"model": model, "dtype": dtype, "attention": attention, "checkpoints": checkpoints}
    found = resolved("load_model", asked, _LoadKeys)
    checkpoint = prepare(found["model"], found["checkpoints"])
    load = partial(_loaded, checkpoint, place, (attention, found["checkpoints"]))
    fastest, reason = resolve_dtype(found["dtype"], place)
    if not check:
        return load(fastest, reason)
    from packedesm.notebook.check import first_that_passes  # here: it loads fair-esm

    formats = _LADDER[_LADDER.index(fastest) :] if dtype == "auto" else [fastest]
    return first_that_passes(load, formats, reason)


class _LoadKeys(CallKeys, total=False):
    model: str | Path
    checkpoints: str | Path
    dtype: str
    attention: str


# The fastest first.
_LADDER = ["float16", "bfloat16", "float32"]


def _loaded(
    checkpoint: Checkpoint,
    device: torch.device,
    settings: tuple[str, str],
    dtype: str,
    reason: str,
) -> EmbeddingModel:
    esm2 = load_fitting(checkpoint, dtype, "torch", device)
    model = EmbeddingModel(esm2, checkpoint, *settings)
    model._dtype_reason = reason
    model._way()  # raises where the backend does not fit
    return model
