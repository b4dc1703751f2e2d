"""Packs to the vectors of a shard: one job, from claim to published arrays."""
