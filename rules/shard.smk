rule shard:
    input:
        fasta=fasta_files,
        checkpoint=RUN.checkpoint,
    output:
        fasta=every_shard(SAMPLE.shard_fasta),
        fai=every_shard(SAMPLE.shard_fai),
        digests=every_shard(SAMPLE.shard_digests),
        index=SAMPLE.shard_index,
        skipped=SAMPLE.shard_skipped,
        sharding=SAMPLE.sharding,
        seconds=SAMPLE.sharding_seconds,
    log:
        log_of("shard", "sample"),
    benchmark:
        benchmark_of("shard", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes_to_read(5),  # MB/s of compressed input, the slowest kind
    params:
        root=sample_root,
        shards=SHARDS,
        options=ShardOptions.part(OPTIONS),
    message:
        "Check {wildcards.sample} and cut it into shards, number of shards: {params.shards}"
    script:
        "../scripts/shard.py"
