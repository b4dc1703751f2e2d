rule merge:
    input:
        vectors=[
            SAMPLE.shard_array(shard, name)
            for shard in range(SHARDS)
            for name in ARRAYS
        ],
        # Of the letters of residues, which some arrays are read with.
        fasta=every_shard(SAMPLE.shard_fasta) if LETTERED & {*ARRAYS} else [],
        fai=every_shard(SAMPLE.shard_fai) if LETTERED & {*ARRAYS} else [],
        index=SAMPLE.shard_index,
        skipped=SAMPLE.shard_skipped,
        sharding=SAMPLE.sharding,
        runs=every_shard(SAMPLE.shard_run),
    output:
        arrays=SAMPLE.arrays(ARRAYS),
        index=SAMPLE.index,
        skipped=SAMPLE.skipped,
        merging=SAMPLE.merging,
        seconds=SAMPLE.merging_seconds,
    log:
        log_of("merge", "sample"),
    benchmark:
        benchmark_of("merge", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes_to_read(50),  # MB/s, on a busy network file system
    params:
        root=sample_root,
        shards=SHARDS,
        arrays=ARRAYS,
    message:
        "Merge the shards of {wildcards.sample} in input order"
    script:
        "../scripts/merge.py"
