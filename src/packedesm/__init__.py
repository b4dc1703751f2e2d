"""Packed (padding-free) ESM-2 embeddings for protein FASTA files."""

from packedesm.errors import UserError
from packedesm.results.reader import Results, open

__all__ = ["Results", "UserError", "open"]
