"""Records that read well and are likely no protein: nothing is changed or refused, only flagged.

A real protein may look like this, so it is no error. The rule for DNA and RNA was chosen by what it
must let pass. Of 19,895 records of UniProt with at least 20 residues, two (protamines) hold nothing
but letters that stand for nucleotides too, and of those about 8% are A, C, G, T, U or N, where the
rule asks for 80%. Silk, antifreeze proteins, and repeats such as poly-GA keep to such letters over
long stretches, but to two of A, C, G and T, where the rule asks for three. Of 20 residues, drawn as
often as in UniProt, less than one peptide in ten million passes for DNA, and longer ones are rarer
still. Of random DNA the rule misses six in a million of 20 bases, which hold two of the four only.
"""

from collections.abc import Iterator, Sequence

from packedesm.sequences.flags import NUCLEOTIDE_LIKE

SHORTEST_NUCLEOTIDES = 20
"""Fewer letters are not judged: peptides of A, C, G and T alone exist."""

_LARGEST_AMBIGUOUS_SHARE = 0.2
_BASES = b"ACGTUN"
_AMBIGUOUS = b"RYSWKMBDHV"  # IUPAC's further letters: two or three of the bases each
_UNKNOWN = b"X"  # of proteins, and in DNA what was masked

MISSING_VALUES = frozenset(
    b"NA NAN NIL NONE NULL EMPTY MISSING NODATA NOSEQUENCE NOTAVAILABLE SEQUENCEUNAVAILABLE "
    b"UNAVAILABLE UNDEFINED UNKNOWN".split()
)
"""Words that tables and databases write where there is no sequence, and that spell a peptide."""

_LONGEST_WORD = max(map(len, MISSING_VALUES))
_L, _E, _X = b"LEX"


def find_doubts(sequences: Sequence[bytes]) -> list[tuple[int, str]]:
    """Return the position of each record that is likely a mistake, with its flag.

    Parameters
    ----------
    sequences
        Upper-case residue letters of each record, at least one.

    Returns
    -------
    list of (int, str)
        Flags are names from `packedesm.sequences.flags.FLAGS`; a record may have two.
    """
    # Nearly every protein is out at once: one of L and E is found among its first letters.
    odd = [
        position
        for position, letters in enumerate(sequences)
        if not (_L in letters or _E in letters) or _X in letters or len(letters) <= _LONGEST_WORD
    ]
    return [(position, flag) for position in odd for flag in _doubts(sequences[position])]


def _doubts(sequence: bytes) -> Iterator[str]:
    unknown = sequence.count(_UNKNOWN)
    if sequence in MISSING_VALUES:
        yield "missing_value"
    if is_nucleotide_like(sequence):
        yield NUCLEOTIDE_LIKE
    if unknown == len(sequence):
        yield "unknown_only"
    elif 2 * unknown > len(sequence):
        yield "mostly_unknown"


def is_nucleotide_like(sequence: bytes) -> bool:
    """Tell whether a sequence, upper-case letters, is likely DNA or RNA.

    It is if, X left out, it has at least `SHORTEST_NUCLEOTIDES` letters, all of IUPAC's code for
    nucleotides, at least four fifths of them A, C, G, T, U or N, and among them three of A, C, G
    and T (or U), or N alone.
    """
    letters = sequence.translate(None, _UNKNOWN) if _UNKNOWN in sequence else sequence
    if len(letters) < SHORTEST_NUCLEOTIDES:
        return False
    ambiguous = letters.translate(None, _BASES)
    if ambiguous.translate(None, _AMBIGUOUS):
        return False
    if len(ambiguous) > _LARGEST_AMBIGUOUS_SHARE * len(letters):
        return False
    kinds = sum(any(letter in letters for letter in kind) for kind in (b"A", b"C", b"G", b"TU"))
    return kinds >= 3 or letters.count(b"N") == len(letters)
