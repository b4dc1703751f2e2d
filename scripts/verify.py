"""Compare sampled records with fair-esm in float32, one protein at a time."""

from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import VerifyOptions
from packedesm.paths import Paths
from packedesm.report.verify import verify

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        verify(
            Paths(snakemake.params.root),
            Checkpoint.read(snakemake.input.checkpoint),
            VerifyOptions.of(snakemake.params.options),
            shards=snakemake.params.shards,
        )
