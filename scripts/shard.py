"""Check the FASTA files of a sample and cut them into shards."""

from pathlib import Path

from packedesm.files import read_json
from packedesm.log import job_log
from packedesm.paths import Layout
from packedesm.sequences.shards import write_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_shards(
            [Path(path) for path in snakemake.input.fasta],
            Layout(snakemake.params.root),
            snakemake.params.shards,
            width=read_json(snakemake.input.checkpoint)["width"],
            **snakemake.params.options,
        )
