"""Check the results and write the manifest."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.results.manifest import write_manifest

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_manifest(Paths(snakemake.params.root), snakemake.config)
