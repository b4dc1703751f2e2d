"""Write the report."""

from packedesm.log import job_log
from packedesm.paths import Paths
from packedesm.report.page import write_report

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_report(Paths(snakemake.params.root))
