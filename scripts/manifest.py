"""Check the results and write the manifest."""

from packedesm.joblog import job_log
from packedesm.layout import Layout
from packedesm.manifest import write_manifest

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_manifest(Layout(snakemake.params.root), snakemake.config)
