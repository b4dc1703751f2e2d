"""Check the FASTA files of a sample and cut them into shards."""

from pathlib import Path

from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.sequences.shards import write_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_shards(
            [Path(path) for path in snakemake.input.fasta],
            Paths(snakemake.params.root),
            ShardOptions.of(snakemake.params.options),
            shards=snakemake.params.shards,
            width=Checkpoint.read(snakemake.input.checkpoint).geometry.width,
        )
