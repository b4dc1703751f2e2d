"""Compare sampled records with fair-esm in float32, one protein at a time."""

from pathlib import Path

from packedesm.log import job_log
from packedesm.paths import Layout
from packedesm.report.verify import verify

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        verify(
            Layout(snakemake.params.root),
            Path(snakemake.input.checkpoint),
            shards=snakemake.params.shards,
            seed=snakemake.params.seed,
            **snakemake.params.options,
        )
