"""Ids that come twice: with one sequence they are counted, with two they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from packedesm.errors import SHOWN, UserError, listed, plural, quote
from packedesm.sequences.partition import first_occurrences

if TYPE_CHECKING:
    from packedesm.sequences.staging import Found


def count_repeats(found: Found, id_digests: np.ndarray, first_sequence: np.ndarray) -> int:
    """Return how many records repeat an id and its sequence.

    Parameters
    ----------
    found
        The records.
    id_digests
        uint64 (N, 2), of their ids.
    first_sequence
        int64 (N,): the first row with the sequence of each.

    Raises
    ------
    UserError
        If different sequences have one id.
    """
    first_id = first_occurrences(id_digests)
    repeated = np.flatnonzero(first_id != np.arange(len(first_id)))
    conflicts = repeated[first_sequence[repeated] != first_sequence[first_id[repeated]]]
    if not len(conflicts):
        return len(repeated)
    shown = conflicts[:SHOWN]
    pairs = list(zip(found.records(first_id[shown]), found.records(shown), strict=True))
    examples = [f"{quote(pair[1]['id'])} ({found.locate(*pair)})" for pair in pairs]
    where = f"{found.inputs[0].path}: " if len(found.inputs) == 1 else ""
    advice = "make the ids unique"
    if any(first["description"] != second["description"] for first, second in pairs):
        advice = (
            "an id ends at the first blank of its header: make the ids unique, or set ids to "
            "header, which takes the whole header as the id"
        )
    raise UserError(
        f"{where}{plural(len(conflicts), 'record')} with the id of an earlier, different sequence: "
        f"{listed(examples, len(conflicts))}; {advice}"
    )
