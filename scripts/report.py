"""Write the report."""

from packedesm.joblog import job_log
from packedesm.layout import Layout
from packedesm.report import write_report

if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        write_report(Layout(snakemake.params.root))
