"""The model: which there are, their weights, and ESM-2 on packed proteins."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "geometry": ["Geometry"],
        "registry": ["MODELS", "Checkpoint"],
        "checkpoints": ["load_state", "prepare"],
        "model": ["PackedESM2"],
        "attention": ["select_backend", "varlen_attention"],
    },
)
