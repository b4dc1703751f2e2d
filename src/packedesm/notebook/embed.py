"""Sequences to vectors by one call."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from packedesm.errors import UserError
from packedesm.esm2.registry import DEMO
from packedesm.files import identities
from packedesm.notebook.embeddings import Embeddings
from packedesm.notebook.model import EmbeddingModel, load_model
from packedesm.notebook.place import find_device
from packedesm.notebook.request import ModelKeys, resolved, with_keys
from packedesm.notebook.run import Show
from packedesm.notebook.source import Sequences, source_of

_OF_MODEL = ("dtype", "device", "checkpoints", "attention", "check")


@with_keys(ModelKeys)
def embed(
    sequences: Sequences,
    model: str | Path | EmbeddingModel = DEMO,
    outputs: str | Sequence[str] = ("mean",),
    *,
    layers: int | str | Sequence[int | str] = ("last",),
    progress: Show = True,
    **keys: Unpack[ModelKeys],
) -> Embeddings:
    """Embed proteins in memory, as the command does, and return what `packedesm.open` would give.

    Sequences are cleaned, flagged and refused, packed, computed and pooled by the same code, and on
    one machine with one token budget and number of threads the arrays are those of the command, bit
    by bit. Nothing is written, and no process is started unless `workers` asks for some.

    The model is compared with fair-esm when it is loaded, see `load_model`. The one that was loaded
    last is kept: the next call with the same one begins at once.

    Parameters
    ----------
    sequences
        A list of texts, whose ids are ``"0"``, ``"1"`` and so on; a mapping or pandas Series of id
        to text; or the path of a FASTA file. A single text is a path.
    model
        A name or path, as `load_model` takes it, or what that returned.
    outputs
        One of those of a run, or several: ``mean``, ``cls``, ``max``, ``residue``, ``logits`` and
        so on, see ``packedesm embed --help``.
    layers
        ``last``, numbers as fair-esm counts its layers, from 0, the embeddings, or negative ones
        from the end; one or several.
    progress
        Whether a bar is shown, on a terminal or in a notebook, when it takes more than a second; or
        a function that is called with the number of residues that are done.
    dtype, device, checkpoints, attention, check
        Of the model, as `load_model` takes them; not with a model that is loaded.
    max_length, long_sequences, window_overlap
        What happens to long proteins; as the keys of a run.
    empty_sequences, ids, deduplicate
        How input is read; as the keys of a run. `ids` is for FASTA files alone.
    token_budget, output_dtype, workers, seed
        How it is computed; as the keys of a run.

    Returns
    -------
    Embeddings
        Records are in the order of the sequences; those without residues may be left out
        (``empty_sequences="skip"``), and an empty list has no records.

    Raises
    ------
    UserError
        If an option is wrong, or an item is no protein sequence; the message tells which.
    Fault
        If the memory does not hold a protein, even alone.

    Examples
    --------
    >>> import packedesm
    >>> proteins = {"P01501": "GIGAVLKVLTTGLPALISWIKRKRQQ", "again": "gigavlkvlttglpaliswikrkrqq"}
    >>> found = packedesm.embed(proteins, device="cpu")
    >>> found.array("mean").shape, found.ids
    ((2, 192), ['P01501', 'again'])
    >>> found.index["duplicate_of"].tolist(), found.index["flags"].tolist()
    ([<NA>, 0], ['', 'upper_cased'])
    >>> both = packedesm.embed(["MKT"], layers=[0, "last"], outputs=["mean", "max"], device="cpu")
    >>> both.arrays
    ['mean.layer0', 'mean', 'max.layer0', 'max']
    >>> packedesm.embed(["MKT", "ELV-IS"], device="cpu")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    packedesm.errors.UserError: item 1: character '-' at residue 4 is no amino acid; gaps of ...
    """
    of_model = {key: keys[key] for key in _OF_MODEL if key in keys}  # type: ignore[literal-required]
    of_call: Any = {key: value for key, value in keys.items() if key not in _OF_MODEL}
    resolved("embed", of_call, ModelKeys)  # a slip is not to wait for a model
    sequences = source_of(sequences)
    if not isinstance(model, EmbeddingModel):
        model = _kept.get(model, of_model)
    elif of_model:
        raise UserError(f"embed(): {', '.join(of_model)} are of a model that is to be loaded")
    return model.embed(sequences, outputs, layers=layers, progress=progress, **of_call)


class _Kept:
    """The model that was loaded last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Any = None
        self._model: EmbeddingModel | None = None

    def get(self, model: str | Path, keys: Mapping[str, Any]) -> EmbeddingModel:
        """Return a model, loaded unless it is the last one and its files are as they were."""
        device = find_device(keys.get("device", "auto"))
        with self._lock:
            key = (str(model), device, *sorted((k, str(v)) for k, v in keys.items()))
            if self._model is None or self._key != (key, self._files(self._model)):
                self._model = self._key = None  # two would not fit where one does
                self._model = load_model(model, **{**keys, "device": device})
                self._key = (key, self._files(self._model))
            return self._model

    def _files(self, model: EmbeddingModel) -> Any:
        try:
            return identities(model.checkpoint.files())
        except OSError:
            return None


_kept = _Kept()
