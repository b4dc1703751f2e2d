"""Check the FASTA files of a sample and cut them into shards."""

from pathlib import Path

from packedesm.files import read_json
from packedesm.joblog import job_log
from packedesm.layout import Layout
from packedesm.sharding import write_shards

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_shards(
            [Path(path) for path in snakemake.input.fasta],
            Layout(snakemake.params.root),
            snakemake.params.shards,
            width=read_json(snakemake.input.checkpoint)["width"],
            **snakemake.params.options,
        )
