"""The records that every contender embeds."""

from pathlib import Path

import numpy as np

from packedesm.sequences.fasta import read_records

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "uniprot_500.fasta.gz"


def draw(fasta: Path, count: int, max_length: int, seed: int) -> list[str]:
    """Return `count` sequences whose lengths are spread as those of the file's records.

    One record is drawn from each of `count` strata of equal size along the sorted lengths, so a
    small sample has the quantiles of the file; more records than the file has are drawn
    repeatedly. They come in random order, each cut at `max_length` residues.

    Parameters
    ----------
    fasta
        Any FASTA that packedesm reads.
    seed
        The same seed draws the same records in the same order.
    """
    sequences = sorted(
        (record.sequence[:max_length].decode("ascii") for record in read_records(fasta)), key=len
    )
    generator = np.random.default_rng(seed)
    places = (np.arange(count) + generator.random(count)) / count * len(sequences)
    return [sequences[int(place)] for place in generator.permutation(places)]
