# After the manifest, and nothing comes of it: a format that is asked for later makes only its files.
rule export:
    input:
        manifest=manifest_to_export,
        arrays=SAMPLE.arrays(ARRAYS),
        index=SAMPLE.index,
        fasta=fasta_to_export,
    output:
        # Not removed before the job: it is what tells which files there are an earlier export's.
        record=update(SAMPLE.export("{format}")),
    log:
        log_of("export.{format}", "sample"),
    benchmark:
        benchmark_of("export.{format}", "sample")
    wildcard_constraints:
        format="|".join(FORMATS),
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes_to_read(5),  # MB/s, of many small pieces on a busy network file system
    params:
        root=exported_root,
    message:
        "Export the results of {wildcards.sample} as {wildcards.format}"
    script:
        "../scripts/export.py"
