"""Find, fetch or make the model, and record what it is."""

from pathlib import Path

from packedesm.esm2.checkpoints import prepare
from packedesm.log import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        checkpoint = prepare(snakemake.params.model, snakemake.params.checkpoints)
        checkpoint.write(Path(snakemake.output.record))
