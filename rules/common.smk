import re
from dataclasses import replace
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import RerunTrigger

from packedesm.config import resolve, samples, with_arrays
from packedesm.device.gpus import gpu_count, shard_count
from packedesm.errors import UserError, permissions_told
from packedesm.files import read_json
from packedesm.paths import LETTERED, Paths
from packedesm.esm2.input_files import files_as_named, published_base
from packedesm.esm2.registry import Checkpoint, known_depth
from packedesm.options import (
    EmbedOptions,
    JobOptions,
    ReferenceOptions,
    NONE,
    ReportOptions,
    ShardOptions,
    VerifyOptions,
)
from packedesm.outputs import needs
from packedesm.reference.vectors import FIRST, PARTS
from packedesm.results.exports.configured import expect_possible
from packedesm.results.exports.formats import FORMATS
from packedesm.report.annotations import check_shown
from packedesm.results.planning import Planning
from packedesm.cluster import (
    embed_minutes,
    model_megabytes,
    transfer_minutes,
    reference_minutes,
)

place = workflow.modifier.path_modifier.replace_prefix  # a module may have one
first = workflow.is_main_process  # and not a job, which reads this file again


def table_files(options):
    """Return the table that colours the maps, checked if it is there: another rule may make it."""
    shown = ReportOptions.of(options)
    tables = [shown.annotations] if shown.table else []
    there = [place(table) for table in tables]
    if first and all(Path(table).exists() for table in there):
        found = there[0] if there else NONE
        check_shown(replace(shown, annotations=found), library=not brought)
    return tables


try:
    with permissions_told():
        # All that is read of `config`: in messages and scripts it would be that of the workflow
        # that uses this one as a module.
        OPTIONS = resolve(config)
        OPTIONS = with_arrays(OPTIONS, known_depth(OPTIONS["model"], place))
        expect_possible(OPTIONS["exports"], OPTIONS["outputs"])
        SAMPLES = samples(OPTIONS["fasta"], place)
        HEADS = needs(OPTIONS["outputs"])
        WEIGHTS = files_as_named(OPTIONS["model"], place, HEADS)
        BASE = published_base(OPTIONS["model"], place, OPTIONS["checkpoints"], HEADS)
        PLANNING = Planning(OPTIONS, SAMPLES, WEIGHTS, BASE, place, Path(".snakemake"))
        ANNOTATIONS = table_files(OPTIONS)
        GPUS = gpu_count(OPTIONS["device"])
        if first:
            PLANNING.refuse_foreign()
            found = shard_count(OPTIONS["shards"], OPTIONS["device"])
            SHARDS = PLANNING.number_of_shards(found)
        else:
            SHARDS = PLANNING.remembered_shards()
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = OPTIONS["results"]
RUN = Paths(RESULTS)
SAMPLE = Paths(f"{RESULTS}/{{sample}}")
ARRAYS = OPTIONS["arrays"]
# `workflow.cores` refuses to be read where no --cores was given, as on a cluster.
CORES = workflow.resource_settings.cores or 4
# One job per GPU at a time on this machine, and a core beside them for the reference; and the whole
# machine for one job on a CPU. On a cluster the profile's set-threads decides.
THREADS_TO_EMBED = max(1, min(4, (CORES - 1) // GPUS)) if GPUS else CORES
MAX_MINUTES = OPTIONS["cluster"]["max_minutes"]


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    shard=r"\d+",
    part="|".join(PARTS),


def sample_root(_wildcards, output):
    """Return the folder of the sample that a rule's first output belongs to."""
    return str(Paths.of(output[0]).root)


def every_shard(path):
    """Return what `path` gives for each shard, such as every shard's FASTA."""
    return [path(shard) for shard in range(SHARDS)]


def log_of(rule, *wildcards):
    """Return the log of one rule; Snakemake fills in the wildcards."""
    return "/".join(
        [RESULTS, ".logs", *(f"{{{name}}}" for name in wildcards), f"{rule}.log"]
    )


def benchmark_of(rule, *wildcards):
    """Return the record of time and memory of one rule, beside its log."""
    return log_of(rule, *wildcards).removesuffix(".log") + ".benchmark.jsonl"


def changes_no_result(value):
    """Return `value` as a parameter whose change makes no step run again.

    Snakemake takes a function of the input for one that gives nothing of its own.
    """
    return lambda _wildcards, input: value


def fasta_files(wildcards):
    """Return the input of a sample."""
    if first:
        draw_again(PLANNING.outdated_steps(wildcards.sample, SHARDS))
        if not workflow.dryrun:
            PLANNING.remember_shards(SHARDS)
    return SAMPLES[wildcards.sample]


def model_files(_wildcards):
    """Return the weights as input where the user names a path, so that new ones are noticed."""
    if first:
        draw_again(PLANNING.outdated_checkpoint())
    return WEIGHTS


def first_part(wildcards):
    """Return the files of the reference's first part, as input of the rest."""
    there = Paths(f"{RESULTS}/{wildcards.sample}")
    return [] if wildcards.part == FIRST else there.reference_files(FIRST)


def exported_root(_wildcards, output):
    """Return the folder of the sample whose export a rule makes."""
    return str(Path(output[0]).parent.parent)


def manifest_to_export(wildcards):
    """Return the manifest of a sample; exports of which a file is gone run again.

    Of whatever age: another report is a reason to write it again, not to export again.
    """
    if first:
        run_again(PLANNING.outdated_exports(wildcards.sample))
    return ancient(str(Paths(f"{RESULTS}/{wildcards.sample}").manifest))


def fasta_to_export(wildcards):
    """Return the input of a sample where an export needs the sequences, which results lack."""
    return SAMPLES[wildcards.sample] if FORMATS[wildcards.format].sequences else []


def first_reference(wildcards):
    """Return the reference's first part as input of a shard's job.

    Of whatever age where the shard is embedded as is asked for now: another sample is a reason to
    verify again, not to embed again. Where it is not, its age counts, since Snakemake looks for no
    other reason to run what depends on a step that runs.
    """
    files = Paths(f"{RESULTS}/{wildcards.sample}").reference_files(FIRST)
    if PLANNING.embedded_as_asked(wildcards.sample, int(wildcards.shard)):
        return [ancient(str(path)) for path in files]
    return files


def run_again(outdated):
    """Let the steps that make these files run again, as if the user had named them.

    What `.snakemake` remembers may be of another run than that whose results are there.
    """
    if RerunTrigger.PARAMS in workflow.dag_settings.rerun_triggers:
        workflow.dag.forcefiles.update(map(str, outdated))


def draw_again(outdated):
    """Let steps run again that the report comes after; end if its table can come from nowhere.

    Snakemake takes a step that lacks an input for one that need not run, if the step's files are
    there, and swallows every exception but SystemExit that says otherwise.
    """
    for table in map(place, ANNOTATIONS):
        made = any(rule.is_producer(table) for rule in workflow.rules)
        if outdated and not made and not Path(table).exists():
            raise SystemExit(
                f"packedesm: {table}: is not there, and no rule makes it; the report cannot be "
                "drawn again; check config key report.annotations"
            )
    run_again(outdated)


# What a cluster is asked for. Where the files that decide it do not exist yet, Snakemake asks again
# once they do.
def at_hand(path):
    """Return the file of an input that is read here; of one in a storage a copy is fetched."""

    async def fetch():
        if await path.exists_in_storage():
            await path.retrieve_from_storage()

    if path.is_storage:
        workflow.async_run(fetch())
    return path


def minutes_to_embed(wildcards, input, attempt):
    """Return the time limit of one shard's job, from its cost and the size of the model."""
    shards = read_json(at_hand(input.sharding))["shards"]
    if len(shards) == SHARDS:
        cost = shards[int(wildcards.shard)]["cost"]
    else:  # of a run with another number of shards, before the shard step runs again
        cost = sum(shard["cost"] for shard in shards) / SHARDS
    speed = OPTIONS["cluster"]["tflops"]
    return embed_minutes(
        Checkpoint.read(at_hand(input.checkpoint)),
        cost,
        attempt,
        tflops=speed,
        max_minutes=MAX_MINUTES,
    )


def minutes_for_reference(_wildcards, input, attempt):
    """Return the time limit of the reference, from its records and the size of the model."""
    # Where anything comes from masked passes, four residues of each record are masked in turn.
    passes = 5 if ShardOptions.of(OPTIONS).masked else 1
    records = ReferenceOptions.of(OPTIONS).most
    tokens = passes * records * (OPTIONS["max_length"] + 2)
    return reference_minutes(
        Checkpoint.read(at_hand(input.checkpoint)),
        tokens,
        attempt,
        max_minutes=MAX_MINUTES,
    )


def minutes_to_read(rate):
    """Return a function that gives the time limit of a job that handles `rate` MB/s of input."""
    return lambda _wildcards, input, attempt: transfer_minutes(
        input.size_mb, rate, attempt, max_minutes=MAX_MINUTES
    )


def megabytes_with_model(_wildcards, input, attempt):
    """Return the memory of a job that holds the model."""
    return model_megabytes(Checkpoint.read(at_hand(input.checkpoint)), attempt)


def megabytes(first):
    """Return a function that asks for `first` MB, and as much again with each attempt."""
    return lambda _wildcards, attempt: first * attempt
