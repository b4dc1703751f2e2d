rule metrics:
    input:
        index=SAMPLE.shard_index,
        sharding=SAMPLE.sharding,
        fai=every_shard(SAMPLE.shard_fai),
        packs=every_shard(SAMPLE.shard_packs),
        runs=every_shard(SAMPLE.shard_run),
        reference=SAMPLE.reference(FIRST),
    output:
        metrics=SAMPLE.metrics,
        packing=report(
            SAMPLE.packing, caption="../report/packing.rst", category="{sample}"
        ),
        throughput=report(
            SAMPLE.throughput, caption="../report/throughput.rst", category="{sample}"
        ),
    log:
        log_of("metrics", "sample"),
    benchmark:
        benchmark_of("metrics", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=60,
    params:
        root=sample_root,
        shards=SHARDS,
    message:
        "Add up packing and throughput of {wildcards.sample}"
    script:
        "../scripts/metrics.py"


rule report:
    input:
        metrics=SAMPLE.metrics,
        verification=SAMPLE.verification,
        arrays=SAMPLE.arrays(ARRAYS),
        index=SAMPLE.index,
        merging=SAMPLE.merging,
        annotations=ANNOTATIONS,
        seconds=[SAMPLE.sharding_seconds, SAMPLE.merging_seconds],
    output:
        report=report(
            SAMPLE.report, caption="../report/report.rst", category="{sample}"
        ),
        multiqc=SAMPLE.multiqc(),
        reporting=SAMPLE.reporting,
    log:
        log_of("report", "sample"),
    benchmark:
        benchmark_of("report", "sample")
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=60,
    params:
        root=sample_root,
        options=ReportOptions.part(OPTIONS),
    message:
        "Write the report of {wildcards.sample}"
    script:
        "../scripts/report.py"


# Last, and only if the verification passed: the manifest says that everything is there.
rule manifest:
    input:
        arrays=SAMPLE.arrays(ARRAYS),
        index=SAMPLE.index,
        skipped=SAMPLE.skipped,
        merging=SAMPLE.merging,
        verification=SAMPLE.verification,
        metrics=SAMPLE.metrics,
        tables=[SAMPLE.packing, SAMPLE.throughput],
        report=SAMPLE.report,
        multiqc=SAMPLE.multiqc(),
        reporting=SAMPLE.reporting,
        runs=every_shard(SAMPLE.shard_run),
    output:
        manifest=SAMPLE.manifest,
    log:
        log_of("manifest", "sample"),
    benchmark:
        benchmark_of("manifest", "sample")
    localrule: True
    conda:
        "../envs/packedesm.yaml"
    threads: 1
    resources:
        mem_mb=megabytes(4000),
        runtime=60,
    params:
        root=sample_root,
        config=changes_no_result(OPTIONS),
    message:
        "Check the results of {wildcards.sample} and write their manifest"
    script:
        "../scripts/manifest.py"
