"""Export the results in one format."""

from pathlib import Path

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.results.exports.export import Asked, export
from packedesm.results.folder import one_at_a_time
from packedesm.results.reader import Results

if __name__ == "__main__":
    paths, name = Paths(snakemake.params.root), snakemake.wildcards.format
    with job_log(snakemake.log[0]), one_at_a_time(paths, f"export.{name}"):
        export(Results(paths.root), Asked(name, fasta=tuple(map(Path, snakemake.input.fasta))))
