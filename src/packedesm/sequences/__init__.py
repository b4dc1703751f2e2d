"""FASTA to shards: read, check, deduplicate, cut into ranges of equal cost."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "shards": ["write_shards"],
        "fasta": ["Record", "read_records"],
        "faidx": ["read_faidx"],
    },
)
