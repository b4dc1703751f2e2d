"""Embed one shard on one device."""

from packedesm.embedding.job import embed_shard
from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import EmbedOptions, JobOptions
from packedesm.paths import Paths

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        embed_shard(
            Paths(snakemake.params.root),
            int(snakemake.wildcards.shard),
            Checkpoint.read(snakemake.input.checkpoint).at(snakemake.input.weights),
            EmbedOptions.of(snakemake.params.options),
            JobOptions.of(snakemake.params.job),
            threads=snakemake.threads,
        )
