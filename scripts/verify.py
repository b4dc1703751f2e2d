"""Compare sampled records with fair-esm in float32, one protein at a time."""

from packedesm.esm2.registry import Checkpoint
from packedesm.log import job_log
from packedesm.options import VerifyOptions
from packedesm.paths import Paths
from packedesm.report.verify import verify
from packedesm.results.folder import one_at_a_time

if __name__ == "__main__":
    paths = Paths(snakemake.params.root)
    with job_log(snakemake.log[0]), one_at_a_time(paths, "verify"):
        verify(
            paths,
            Checkpoint.read(snakemake.input.checkpoint).at(snakemake.input.weights),
            VerifyOptions.of(snakemake.params.options),
            shards=snakemake.params.shards,
        )
