"""The vectors of all shards to results, and results back to the reader."""
