"""Check the results and write the manifest."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.results.folder import one_at_a_time
from packedesm.results.manifest import write_manifest

if __name__ == "__main__":
    paths = Paths(snakemake.params.root)
    with job_log(snakemake.log[0]), one_at_a_time(paths, "manifest"):
        write_manifest(paths, snakemake.params.config)
