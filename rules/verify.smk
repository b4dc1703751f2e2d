rule verify:
    input:
        arrays=SAMPLE.arrays(OUTPUTS),
        index=SAMPLE.index,
        merging=SAMPLE.merging,
        sharding=SAMPLE.sharding,
        fasta=every_shard(SAMPLE.shard_fasta),
        fai=every_shard(SAMPLE.shard_fai),
        runs=every_shard(SAMPLE.shard_run),
        shard_index=SAMPLE.shard_index,
        checkpoint=RUN.checkpoint,
        weights=[ancient(path) for path in WEIGHTS],
    output:
        verification=SAMPLE.verification,
    log:
        log_of("verify", "sample"),
    benchmark:
        benchmark_of("verify", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 4
    resources:
        mem_mb=megabytes_with_model,
        runtime=minutes_to_verify,
    params:
        root=sample_root,
        shards=SHARDS,
        options=VerifyOptions.part(OPTIONS),
    message:
        "Compare sampled records of {wildcards.sample} with fair-esm in float32"
    script:
        "../scripts/verify.py"
