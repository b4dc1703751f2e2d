"""Packs to the vectors of a shard: one job, from claim to its arrays."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "job": ["embed_shard"],
        "runner": ["AsyncInferenceRunner"],
        "record": ["ShardRun"],
        "pack": ["FinishedPack", "PackStatistics"],
        "resume": ["ShardState"],
    },
)
