"""Concatenate the shards' arrays in input order."""

from packedesm.log import job_log
from packedesm.paths import Layout
from packedesm.results.merge import merge_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        merge_shards(
            Layout(snakemake.params.root), snakemake.params.shards, snakemake.params.outputs
        )
