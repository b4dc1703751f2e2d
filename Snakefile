from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


# A configuration need not have a file: every key has its default, but for `fasta`.
if Path("config.yaml").exists():

    configfile: "config.yaml"


report: "report/workflow.rst"


include: "rules/package.smk"
include: "rules/common.smk"


# First, and so what is made where nothing is named; not `default_target`, which would take the
# place of that of a workflow that uses this one as a module.
rule all:
    input:
        [Paths(f"{RESULTS}/{sample}").manifest for sample in SAMPLES],
        [
            Paths(f"{RESULTS}/{sample}").export(format)
            for sample in SAMPLES
            for format in OPTIONS["exports"]
        ],


include: "rules/slurm.smk"
include: "rules/checkpoint.smk"
include: "rules/shard.smk"
include: "rules/reference.smk"
include: "rules/embed.smk"
include: "rules/merge.smk"
include: "rules/verify.smk"
include: "rules/report.smk"
include: "rules/export.smk"
