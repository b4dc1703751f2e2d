# Local, because compute nodes often have no network.
localrules:
    checkpoint,


rule checkpoint:
    input:
        model_file,
    output:
        record=RUN.checkpoint,
    log:
        log_of("checkpoint"),
    benchmark:
        benchmark_of("checkpoint")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        # Functions, because Snakemake takes braces in plain text for wildcards.
        model=lambda _wildcards: config["model"],
        checkpoints=lambda _wildcards: config["checkpoints"],
        weights=described_model,
    message:
        "Find, fetch or make the model {params.model} and check it"
    script:
        "../scripts/checkpoint.py"
