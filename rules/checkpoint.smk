rule checkpoint:
    input:
        model_files,
    output:
        record=RUN.checkpoint,
    log:
        log_of("checkpoint"),
    benchmark:
        benchmark_of("checkpoint")
    localrule: True  # because compute nodes often have no network
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        # Functions, because Snakemake takes braces in plain text for wildcards.
        model=lambda _wildcards: OPTIONS["model"],
        checkpoints=lambda _wildcards: OPTIONS["checkpoints"],
        heads=changes_no_result(sorted(HEADS)),  # who needs others asks in common.smk
    message:
        "Find, fetch or make the model {params.model} and check it"
    script:
        "../scripts/checkpoint.py"
