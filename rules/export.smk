def exported_root(_wildcards, output):
    """Return the folder of the sample whose export a rule makes."""
    return str(Path(output[0]).parent.parent)


def manifest_to_export(wildcards):
    """Return the manifest of a sample; exports of which a file is gone run again."""
    if first:
        run_again(PLANNING.outdated_exports(wildcards.sample))
    return Paths(f"{RESULTS}/{wildcards.sample}").manifest


def fasta_to_export(wildcards):
    """Return the input of a sample where an export needs the sequences, which results lack."""
    return SAMPLES[wildcards.sample] if FORMATS[wildcards.format].sequences else []


# After the manifest, and nothing comes of it: a format that is asked for later makes only its files.
rule export:
    input:
        manifest=manifest_to_export,
        arrays=SAMPLE.arrays(OUTPUTS),
        index=SAMPLE.index,
        fasta=fasta_to_export,
    output:
        record=SAMPLE.export("{format}"),
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
