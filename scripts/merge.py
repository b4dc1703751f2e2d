"""Concatenate the shards' arrays in input order."""

from packedesm.joblog import job_log
from packedesm.layout import Layout
from packedesm.store import merge_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        merge_shards(
            Layout(snakemake.params.root), snakemake.params.shards, snakemake.params.outputs
        )
