rule verify:
    input:
        arrays=SAMPLE.arrays(ARRAYS),
        index=SAMPLE.index,
        merging=SAMPLE.merging,
        sharding=SAMPLE.sharding,
        reference=[path for part in PARTS for path in SAMPLE.reference_files(part)],
        runs=every_shard(SAMPLE.shard_run),
    output:
        verification=SAMPLE.verification,
    log:
        log_of("verify", "sample"),
    benchmark:
        benchmark_of("verify", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=60,
    params:
        root=sample_root,
        shards=SHARDS,
        options=VerifyOptions.part(OPTIONS),
    message:
        "Compare sampled vectors of {wildcards.sample} with those of fair-esm"
    script:
        "../scripts/verify.py"
