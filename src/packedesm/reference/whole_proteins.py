"""Of which proteins the reference masks every residue: few, beside what the run itself masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from packedesm.options import LengthPolicy

_MOST = 512  # passes, whatever the run takes
_SHARE = 0.05  # of the tokens of the run's own masked passes, as a rule
_ALWAYS = 96  # passes that are done, however small the run is: seconds on a CPU


class WholeProteins:
    """Choose the proteins of which every place is masked, as a pseudo-perplexity takes.

    They are the shortest. Together they take no more than `_MOST` passes, and a twentieth of what
    the run's own masked passes take, or `_ALWAYS` passes. Where nothing else tells of the masked
    passes, one is taken even if that is more: a pseudo-perplexity can only be compared whole.

    Parameters
    ----------
    policy
        Which residues are embedded.
    run_tokens
        Of all masked passes of the run.
    one
        Whether one is taken in any case.
    """

    def __init__(self, policy: LengthPolicy, run_tokens: int, *, one: bool) -> None:
        self._policy = policy
        self._most_tokens = _SHARE * run_tokens
        self._one = one
        self._taken: dict[int, tuple[int, int]] = {}  # passes and tokens by row

    def take(self, records: Iterable[Mapping[str, Any]]) -> set[int]:
        """Return the rows of those that are taken of some records."""
        before = {*self._taken}
        for record in sorted(records, key=lambda of: (of["embedded_length"], of["row"])):
            passes = record["embedded_length"]
            (tokens,) = passes * self._policy.window_tokens(np.array([record["length"]]))
            if not self._fits(passes, int(tokens)):
                break
            self._taken[record["row"]] = passes, int(tokens)
        return {*self._taken} - before

    def drop(self, row: int) -> None:
        """Forget a protein that could not be done: others may be taken instead."""
        self._taken.pop(row, None)

    def _fits(self, passes: int, tokens: int) -> bool:
        passes += sum(taken for taken, _tokens in self._taken.values())
        tokens += sum(taken for _passes, taken in self._taken.values())
        few = passes <= _ALWAYS or tokens <= self._most_tokens
        return passes <= _MOST and (few or (self._one and not self._taken))
