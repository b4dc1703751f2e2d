"""Check the FASTA files of a sample and cut them into shards."""

from pathlib import Path

from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.results.folder import one_at_a_time
from packedesm.results.inputs import unchanged
from packedesm.sequences.shards import write_shards

if __name__ == "__main__":
    paths = Paths(snakemake.params.root)
    files = [Path(path) for path in snakemake.input.fasta]
    with job_log(snakemake.log[0]), one_at_a_time(paths, "shard"), unchanged(*files):
        write_shards(
            files,
            paths,
            ShardOptions.of(snakemake.params.options),
            shards=snakemake.params.shards,
            width=Checkpoint.read(snakemake.input.checkpoint).geometry.width,
        )
