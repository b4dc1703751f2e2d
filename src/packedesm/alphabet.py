"""From residue letters to ESM-2 token ids, through a table of 256 entries."""

import numpy as np

RESIDUES = b"LAGVSERTIDPKQNFYMHWCXBUZO"  # in the order of fair-esm's alphabet "ESM-1b"
GAPS = b".-"
STANDARD = tuple("LAGVSERTIDPKQNFYMHWC")  # the 20 amino acids, in that order
# All that the language head tells of, by token id.
TOKENS = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *(chr(letter) for letter in RESIDUES + GAPS),
    *("<null_1>", "<mask>"),
)

CLS = 0
PAD = 1
EOS = 2
UNK = 3
MASK = 32

_FIRST_RESIDUE = 4
_NO_TOKEN = 255


def _token_table() -> np.ndarray:
    table = np.full(256, _NO_TOKEN, dtype=np.uint8)
    letters = np.frombuffer(RESIDUES + GAPS, dtype=np.uint8)
    table[letters] = np.arange(_FIRST_RESIDUE, _FIRST_RESIDUE + len(letters))
    table.flags.writeable = False
    return table


TOKEN_TABLE = _token_table()
"""uint8 (256,): token id of every byte; 255 where ESM-2 has no token for that byte."""


def encode(sequence: bytes) -> np.ndarray:
    """Return the token ids of a sequence's residues, without ``<cls>`` and ``<eos>``.

    Parameters
    ----------
    sequence
        Upper-case residue letters, one byte each.

    Returns
    -------
    uint8 array (len(sequence),).

    Raises
    ------
    ValueError
        A byte has no ESM-2 token; the message names it and its 1-based position.
    """
    tokens = TOKEN_TABLE[np.frombuffer(sequence, dtype=np.uint8)]
    if tokens.size and tokens.max() == _NO_TOKEN:
        position = int(tokens.argmax())
        raise ValueError(
            f"{sequence[position : position + 1]!r} at position {position + 1} has no ESM-2 token"
        )
    return tokens
