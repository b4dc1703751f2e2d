"""The vectors of all shards to results, and results back to the reader."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "merge": ["merge_shards"],
        "manifest": ["write_manifest"],
        "reader": ["Results", "open"],
    },
)
