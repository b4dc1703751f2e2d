"""The flags of records: the only place that says what each of them means."""

from typing import NamedTuple


class Flag(NamedTuple):
    """What a flag means.

    Attributes
    ----------
    meaning
        In a sentence or two.
    one, several
        What the log says of one record and of several; empty if it says nothing.
    """

    meaning: str
    one: str = ""
    several: str = ""


NUCLEOTIDE_LIKE = "nucleotide_like"

FLAGS = {
    NUCLEOTIDE_LIKE: Flag(
        "Looks like DNA or RNA; it was embedded as if its letters were amino acids.",
        "looks like DNA or RNA and is embedded as if its letters were amino acids",
        "look like DNA or RNA and are embedded as if their letters were amino acids",
    ),
    "missing_value": Flag(
        "All of the sequence is a word for a missing value, such as NA, embedded as a peptide.",
        "is a word for a missing value, such as NA, and is embedded as a peptide",
        "are a word for a missing value, such as NA, and are embedded as peptides",
    ),
    "unknown_only": Flag(
        "All residues are X (unknown): the vector tells of the length alone.",
        "holds nothing but X (unknown residues)",
        "hold nothing but X (unknown residues)",
    ),
    "mostly_unknown": Flag(
        "More than half of the residues, but not all, are X (unknown).",
        "holds more X (unknown residues) than others",
        "hold more X (unknown residues) than others",
    ),
    "truncated": Flag(
        "Longer than the limit: only the first residues, up to the limit, were embedded.",
        "is longer than {max_length:,} residues and is cut there",
        "are longer than {max_length:,} residues and are cut there",
    ),
    "windowed": Flag("Longer than the limit: embedded in overlapping windows that were averaged."),
    "stop_replaced": Flag(
        "A * inside the sequence was read as X (unknown residue).",
        "holds a stop (*) inside the sequence, which is embedded as X",
        "hold a stop (*) inside the sequence, which is embedded as X",
    ),
    "j_replaced": Flag(
        "J (leucine or isoleucine), which ESM-2 does not know, was read as X.",
        "holds J (leucine or isoleucine), which ESM-2 does not know, embedded as X",
        "hold J (leucine or isoleucine), which ESM-2 does not know, embedded as X",
    ),
    "float32": Flag(
        "Half precision could not hold it, or a GPU was too small: computed in float32."
    ),
    "stop_removed": Flag("One * at the end (a stop codon) was dropped."),
    "upper_cased": Flag("Lower-case letters were read as upper case."),
    "header_latin1": Flag(
        "The header is not UTF-8 and was read as Latin-1.",
        "has a header that is not UTF-8, read as Latin-1",
        "have a header that is not UTF-8, read as Latin-1",
    ),
}
"""Every flag of the index, by its name; first what a reader should know first."""
