"""Add up what the shards' jobs recorded."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.report.metrics import write_metrics

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_metrics(Paths(snakemake.params.root), snakemake.params.shards)
