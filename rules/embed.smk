rule embed:
    input:
        fasta=SAMPLE.shard_fasta("{shard}"),
        fai=SAMPLE.shard_fai("{shard}"),
        digests=SAMPLE.shard_digests("{shard}"),
        sharding=SAMPLE.sharding,
        index=SAMPLE.shard_index,
        checkpoint=RUN.checkpoint,
        reference=first_reference,
        weights=[ancient(path) for path in WEIGHTS],
    output:
        vectors=[SAMPLE.shard_array("{shard}", name) for name in ARRAYS],
        packs=SAMPLE.shard_packs("{shard}"),
        run=SAMPLE.shard_run("{shard}"),
    log:
        log_of("embed.{shard}", "sample"),
    benchmark:
        benchmark_of("embed.{shard}", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: THREADS_TO_EMBED
    # On a cluster the profile's set-resources decides the type of the GPU.
    resources:
        gpu=0 if OPTIONS["device"] == "cpu" else 1,
        mem_mb=megabytes_with_model,
        runtime=minutes_to_embed,
    params:
        root=sample_root,
        model=changes_no_result(OPTIONS["model"]),
        options=EmbedOptions.part(OPTIONS),
        job=changes_no_result(JobOptions.part(OPTIONS)),
    message:
        "Embed shard {wildcards.shard} of {wildcards.sample} with {params.model}"
    script:
        "../scripts/embed.py"
