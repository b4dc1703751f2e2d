"""Sequences to vectors and back in memory, for programs and notebooks: no files, no jobs."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "embed": ["embed"],
        "embeddings": ["Embeddings"],
        "model": ["EmbeddingModel", "load_model"],
        "packed": ["pack"],
    },
)
