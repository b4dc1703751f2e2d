"""The oracle: what fair-esm says of a sample of the records, and how far a vector is from it."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "model": ["Reference"],
        "step": ["write_reference"],
        "vectors": ["ReferenceVectors"],
        "comparison": ["compare"],
    },
)
