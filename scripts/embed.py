"""Embed one shard on one device."""

from packedesm.config import JOB_OPTIONS, pick
from packedesm.embedding.job import embed_shard
from packedesm.files import read_json
from packedesm.log import job_log
from packedesm.paths import Layout

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        embed_shard(
            Layout(snakemake.params.root),
            int(snakemake.wildcards.shard),
            read_json(snakemake.input.checkpoint),
            snakemake.params.options,
            # Not parameters of the rule: they change no vector, so they cause no new run.
            pick(snakemake.config, JOB_OPTIONS),
            threads=snakemake.threads,
        )
