"""Find, fetch or make the model, and record what it is."""

from dataclasses import replace
from pathlib import Path

from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.model_files import model_path
from packedesm.log import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        named, files = snakemake.params.model, snakemake.input
        model = str(model_path(files)) if files else named
        checkpoint = prepare(model, snakemake.params.checkpoints, snakemake.params.heads)
        checkpoint = replace(checkpoint, model=named)
        checkpoint.write(Path(snakemake.output.record))
