"""Concatenate the shards' arrays in input order."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.results.folder import one_at_a_time
from packedesm.results.merge import merge_shards

if __name__ == "__main__":
    paths = Paths(snakemake.params.root)
    with job_log(snakemake.log[0]), one_at_a_time(paths, "merge"):
        merge_shards(paths, snakemake.params.shards, snakemake.params.arrays)
