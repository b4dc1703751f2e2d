"""Write the report."""

from packedesm.log import job_log
from packedesm.options import ReportOptions
from packedesm.paths import Paths
from packedesm.report.page import write_report
from packedesm.results.folder import one_at_a_time

if __name__ == "__main__":
    paths = Paths(snakemake.params.root)
    with job_log(snakemake.log[0]), one_at_a_time(paths, "report"):
        options = ReportOptions.of(snakemake.params.options)
        table = next(iter(snakemake.input.annotations), None)
        write_report(paths, options, table=table, workflow=True)
