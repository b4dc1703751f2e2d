"""Find, fetch or make the model, and record what it is."""

from pathlib import Path

from packedesm.esm2.checkpoints import prepare
from packedesm.log import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        prepare(
            snakemake.params.model,
            snakemake.params.checkpoints,
            Path(snakemake.output.record),
        )
