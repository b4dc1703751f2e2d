from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/slurm.smk"
include: "rules/checkpoint.smk"
include: "rules/shard.smk"
include: "rules/reference.smk"
include: "rules/embed.smk"
include: "rules/merge.smk"
include: "rules/verify.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        [Paths(f"{RESULTS}/{sample}").manifest for sample in SAMPLES],
