# What fair-esm says of the sampled records. Each embedding job compares itself with the first few
# before it begins; the rest may be computed beside the jobs, and the results are compared with all.
rule reference:
    input:
        index=SAMPLE.shard_index,
        sharding=SAMPLE.sharding,
        fasta=every_shard(SAMPLE.shard_fasta),
        fai=every_shard(SAMPLE.shard_fai),
        checkpoint=RUN.checkpoint,
        weights=[ancient(path) for path in WEIGHTS],
        first=first_part,
    output:
        facts=SAMPLE.reference("{part}"),
        numbers=SAMPLE.reference_numbers("{part}"),
    log:
        log_of("reference.{part}", "sample"),
    benchmark:
        benchmark_of("reference.{part}", "sample")
    conda:
        "../envs/packedesm.yaml"
    # So many proteins at a time: on a GPU machine by the cores that the jobs leave.
    threads: max(1, min(16, CORES - GPUS * THREADS_TO_EMBED))
    resources:
        mem_mb=megabytes_with_model,
        runtime=minutes_for_reference,
    params:
        root=sample_root,
        shards=SHARDS,
        options=ReferenceOptions.part(OPTIONS),
    message:
        "Embed sampled records of {wildcards.sample} with fair-esm in float32: {wildcards.part}"
    script:
        "../scripts/reference.py"
