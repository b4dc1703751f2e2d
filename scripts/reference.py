"""Embed sampled records with fair-esm in float32, one protein at a time."""

from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import ReferenceOptions
from packedesm.paths import Paths
from packedesm.reference.step import write_reference
from packedesm.results.folder import one_at_a_time

if __name__ == "__main__":
    paths, part = Paths(snakemake.params.root), snakemake.wildcards.part
    with job_log(snakemake.log[0]), one_at_a_time(paths, f"reference-{part}"):
        write_reference(
            paths,
            Checkpoint.read(snakemake.input.checkpoint).at(snakemake.input.weights),
            ReferenceOptions.of(snakemake.params.options),
            part,
            shards=snakemake.params.shards,
            threads=snakemake.threads,
        )
