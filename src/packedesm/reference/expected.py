"""What the arrays of one protein should hold, from what fair-esm says of it; in float64.

Written apart from the code of a run, after the definitions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from packedesm.alphabet import STANDARD
from packedesm.options import LengthPolicy
from packedesm.outputs import LANGUAGE_HEAD, PAIR, Array
from packedesm.reference.model import Reference, Said

Spans = Sequence[tuple[int, int]]


def reference_vectors(
    reference: Reference,
    sequence: str,
    policy: LengthPolicy,
    arrays: Sequence[Array],
    positions: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Return what the arrays of one protein should hold, by their names.

    Where windows overlap a residue's vector, logits and log-likelihood are the mean over its
    windows, and ``cls`` is the mean over the windows' ``<cls>``. A residue is masked in the one
    window in which it stands furthest from the ends, the earlier of two.

    Parameters
    ----------
    sequence
        All residues of the protein, of which `policy` says which are embedded: L of them.
    positions
        Of residues, from 0, for ``masked_marginals``, which takes a pass for each; default: all.

    Returns
    -------
    dict of ndarray of float64
        Shape (D,) for ``mean``, ``cls`` and ``max``; (L, D) for ``residue``; (L, 33) for
        ``logits``, in the order of fair-esm's alphabet; (L,) for ``log_likelihood``; (P, 20) for
        ``masked_marginals`` at P positions, in the order of `packedesm.alphabet.STANDARD`; () for
        ``pseudo_perplexity``; (L(L+1)/2,) for ``contacts``, the upper triangle row by row.

    Raises
    ------
    DoesNotFitError
        If the memory does not hold it.
    UserError
        If the checkpoint lacks a head that it takes.
    """
    spans = policy.windows(len(sequence))
    if any(array.output.needs == LANGUAGE_HEAD for array in arrays):
        reference.expect(LANGUAGE_HEAD)
    whole = [array for array in arrays if not array.masked]
    masked = [array for array in arrays if array.masked]
    found = _unmasked(reference, sequence, spans, whole) if whole else {}
    return found | (_masked(reference, sequence, spans, masked, positions) if masked else {})


def _unmasked(
    reference: Reference, sequence: str, spans: Spans, arrays: Sequence[Array]
) -> dict[str, np.ndarray]:
    layers = {_layer(array, reference) for array in arrays if array.output.layered}
    pairs = any(array.per == PAIR for array in arrays)
    windows = [
        reference.says(sequence[start:stop], layers, contacts=pairs) for start, stop in spans
    ]
    if pairs and len(spans) > 1:
        raise ValueError("there are no contacts between windows")
    letters = [[reference.column(x) for x in sequence[start:stop]] for start, stop in spans]
    heads: dict[str, Callable[[], np.ndarray]] = {
        "logits": lambda: _averaged([said.logits[1:-1] for said in windows], spans),
        "log_likelihood": lambda: _averaged(
            [_own(said, columns) for said, columns in zip(windows, letters, strict=True)], spans
        ),
        "contacts": lambda: _upper(windows[0].contacts),
    }
    return {
        array.name: _pooled(array, windows, spans, _layer(array, reference))
        if array.output.layered
        else heads[array.name]()
        for array in arrays
    }


def _layer(array: Array, reference: Reference) -> int:
    return reference.depth if array.layer is None else array.layer


def _pooled(array: Array, windows: Sequence[Said], spans: Spans, layer: int) -> np.ndarray:
    tokens = [said.layers[layer].astype(np.float64) for said in windows]
    if array.output.name == "cls":
        return np.mean([vectors[0] for vectors in tokens], axis=0)
    residues = _averaged([vectors[1:-1] for vectors in tokens], spans)
    if array.output.name == "residue":
        return residues
    return residues.max(axis=0) if array.output.name == "max" else residues.mean(axis=0)


def _averaged(parts: Sequence[np.ndarray], spans: Spans) -> np.ndarray:
    """Return the mean over the windows that hold each residue, float64 (L, …)."""
    total = np.zeros((spans[-1][1], *parts[0].shape[1:]))
    times = np.zeros((len(total), *(1 for _ in parts[0].shape[1:])))
    for (start, stop), part in zip(spans, parts, strict=True):
        total[start:stop] += part
        times[start:stop] += 1
    return total / times


def _own(said: Said, columns: Sequence[int]) -> np.ndarray:
    """Return the log probability of the residue that stands at each place, (length,)."""
    return _log_softmax(said.logits[1:-1])[np.arange(len(columns)), columns]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return natural logarithms of probabilities over the last axis, float64."""
    above = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    return above - np.log(np.exp(above).sum(axis=-1, keepdims=True))


def _upper(contacts: np.ndarray | None) -> np.ndarray:
    assert contacts is not None  # they were asked for
    return contacts[np.triu_indices(len(contacts))].astype(np.float64)


def _masked(
    reference: Reference,
    sequence: str,
    spans: Spans,
    arrays: Sequence[Array],
    positions: Sequence[int] | None,
) -> dict[str, np.ndarray]:
    """Return the masked arrays: marginals at some positions, and the perplexity, which takes all.

    Masked marginals are those of Meier et al. 2021 (doi:10.1101/2021.07.09.450648), the
    pseudo-perplexity is that of Salazar et al. 2020 (doi:10.18653/v1/2020.acl-main.240).
    """
    names, every = [array.name for array in arrays], range(spans[-1][1])
    asked = every if positions is None else positions
    at = {
        place: _log_masked(reference, sequence, spans, place)
        for place in (every if "pseudo_perplexity" in names else asked)
    }
    found = {}
    if "masked_marginals" in names:
        columns = [reference.column(letter) for letter in STANDARD]
        lines = [at[place][columns] for place in asked]
        found["masked_marginals"] = np.array(lines).reshape(-1, len(columns))
    if "pseudo_perplexity" in names:
        own = [at[place][reference.column(sequence[place])] for place in every]
        found["pseudo_perplexity"] = np.exp(-np.mean(own))
    return {name: np.asarray(found[name]) for name in names}


def _log_masked(reference: Reference, sequence: str, spans: Spans, place: int) -> np.ndarray:
    """Return the log probabilities (33,) at a place while it is masked."""
    start, stop = max(
        (span for span in spans if span[0] <= place < span[1]),
        key=lambda span: min(place - span[0], span[1] - 1 - place),  # of equals max takes the first
    )
    text = f"{sequence[start:place]}<mask>{sequence[place + 1 : stop]}"
    return _log_softmax(reference.says(text).logits[1 + place - start])
