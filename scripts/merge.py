"""Concatenate the shards' arrays in input order."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.results.merge import merge_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        merge_shards(
            Paths(snakemake.params.root), snakemake.params.shards, snakemake.params.outputs
        )
