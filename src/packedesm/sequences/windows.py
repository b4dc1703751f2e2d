"""Which residues of a record are embedded, and how many tokens that takes.

A segment is a half-open range of residues that the model sees as one sequence, between its own
``<cls>`` and ``<eos>``. Most records are one segment; long ones may be several windows.
"""

import numpy as np

from packedesm.errors import UserError

SPECIAL_TOKENS = 2  # <cls> and <eos> around every segment


def check_window(max_length: int, long_sequences: str, overlap: int) -> None:
    """Raise `UserError` if windows of `max_length` residues could not advance past `overlap`."""
    if long_sequences == "window" and overlap >= max_length:
        raise UserError(
            f"window_overlap ({overlap}) must be smaller than max_length ({max_length}) "
            "when long_sequences is window"
        )


def segments(
    length: int, max_length: int, long_sequences: str, overlap: int
) -> list[tuple[int, int]]:
    """Return the residue ranges ``(start, stop)`` that are embedded of one record.

    Parameters
    ----------
    length
        Residues of the record, at least 1.
    max_length
        Most residues in one segment, except under ``full``.
    long_sequences
        ``truncate`` keeps the first `max_length` residues; ``window`` covers all of them with the
        fewest windows of exactly `max_length` residues of which neighbours share at least
        `overlap`, evenly spaced; ``full`` and ``error`` keep the record in one piece.
    overlap
        Residues that neighbouring windows share at least; only ``window`` reads it.

    Raises
    ------
    UserError
        `overlap` is not smaller than `max_length` under ``window``.
    """
    check_window(max_length, long_sequences, overlap)
    if long_sequences == "truncate":
        return [(0, min(length, max_length))]
    if long_sequences != "window" or length <= max_length:
        return [(0, length)]
    count = _windows(length, max_length, overlap)
    starts = [round(i * (length - max_length) / (count - 1)) for i in range(count)]
    return [(start, start + max_length) for start in starts]


def segment_counts(
    lengths: np.ndarray, max_length: int, long_sequences: str, overlap: int
) -> np.ndarray:
    """Return how many segments each record has: int64 (N,) for int `lengths` (N,) in residues."""
    check_window(max_length, long_sequences, overlap)
    lengths = np.asarray(lengths, dtype=np.int64)
    if long_sequences != "window":
        return np.ones(lengths.shape, dtype=np.int64)
    return np.where(lengths > max_length, _windows(lengths, max_length, overlap), 1)


def record_tokens(
    lengths: np.ndarray, max_length: int, long_sequences: str, overlap: int
) -> np.ndarray:
    """Return the tokens of each record: int64 (N,) for int `lengths` (N,) in residues.

    That is the sum over its segments of their residues and two special tokens. All segments of
    one record have the same length.
    """
    counts = segment_counts(lengths, max_length, long_sequences, overlap)
    lengths = np.asarray(lengths, dtype=np.int64)
    cut = long_sequences in ("truncate", "window")
    segment_lengths = np.minimum(lengths, max_length) if cut else lengths
    return counts * (segment_lengths + SPECIAL_TOKENS)


def segment_tokens(
    lengths: np.ndarray, max_length: int, long_sequences: str, overlap: int
) -> np.ndarray:
    """Return the tokens of every segment, record after record: int64 (S,)."""
    limits = max_length, long_sequences, overlap
    counts = segment_counts(lengths, *limits)
    return np.repeat(record_tokens(lengths, *limits) // counts, counts)


def _windows(length: int | np.ndarray, max_length: int, overlap: int) -> int | np.ndarray:
    # ceil((length - overlap) / (max_length - overlap)) in integers
    return -((overlap - length) // (max_length - overlap))
