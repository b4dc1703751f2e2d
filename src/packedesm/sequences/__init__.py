"""FASTA to shards: read, check, deduplicate, cut into ranges of equal cost."""
