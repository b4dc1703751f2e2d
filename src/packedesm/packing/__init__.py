"""Shards to packs: plan them from the lengths, read, tokenise and collate them."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "packer": ["FirstFitDecreasingPacker", "Packs", "plan_packs"],
        "copies": ["MaskedCopies"],
        "dataset": ["Protein", "SequenceDataset"],
        "items": ["Items"],
        "batch": ["PackedBatch"],
        "collator": ["VarlenCollator"],
        "dataloader": ["create_async_dataloader"],
    },
)
