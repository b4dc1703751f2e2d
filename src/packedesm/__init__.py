"""Packed (padding-free) ESM-2 embeddings for protein FASTA files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packedesm.embedding.pooling import pool as pool
    from packedesm.errors import UserError as UserError
    from packedesm.notebook.embed import embed as embed
    from packedesm.notebook.embeddings import Embeddings as Embeddings
    from packedesm.notebook.model import EmbeddingModel as EmbeddingModel
    from packedesm.notebook.model import load_model as load_model
    from packedesm.notebook.packed import pack as pack
    from packedesm.results.reader import Results as Results
    from packedesm.results.reader import open as open


def exports(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any]]:
    """Return ``__all__`` and ``__getattr__`` of `package`, for names that its modules define.

    A module is imported when one of its names is asked for: most of what is public needs torch,
    and most steps do not.
    """
    owners = {name: module for module, defined in names.items() for name in defined}

    def find(name: str) -> Any:
        if name not in owners:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{owners[name]}"), name)

    return sorted(owners), find


__all__, __getattr__ = exports(
    __name__,
    {
        "errors": ["Fault", "UserError"],
        "results.reader": ["Results", "open"],
        "notebook.embed": ["embed"],
        "notebook.embeddings": ["Embeddings"],
        "notebook.model": ["EmbeddingModel", "load_model"],
        "notebook.packed": ["pack"],
        "embedding.pooling": ["pool"],
        "packing.packer": ["FirstFitDecreasingPacker"],
        "packing.dataset": ["SequenceDataset"],
        "packing.batch": ["PackedBatch"],
        "packing.collator": ["VarlenCollator"],
        "packing.dataloader": ["create_async_dataloader"],
        "esm2.model": ["PackedESM2"],
        "esm2.attention": ["varlen_attention"],
        "embedding.runner": ["AsyncInferenceRunner"],
        "device.gpu_monitor": ["GPUMonitor"],
    },
)
