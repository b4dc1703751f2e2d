import re
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import RerunTrigger

from packedesm.config import resolve, samples
from packedesm.device.gpus import gpu_count, shard_count
from packedesm.errors import UserError, permissions_told
from packedesm.files import read_json
from packedesm.paths import Paths
from packedesm.esm2.registry import Checkpoint, locate, model_files
from packedesm.options import (
    EmbedOptions,
    ReferenceOptions,
    ShardOptions,
    VerifyOptions,
)
from packedesm.reference.vectors import FIRST, PARTS
from packedesm.results.folder import refuse_foreign_sample
from packedesm.results.inputs import describe
from packedesm.results.outdated import kept_number, outdated_checkpoint, outdated_steps
from packedesm.cluster import (
    embed_minutes,
    model_megabytes,
    transfer_minutes,
    reference_minutes,
)

try:
    with permissions_told():
        config.update(resolve(config))
        SAMPLES = samples(config["fasta"])
        locate(config["model"], config["checkpoints"])
        RESULTS = config["results"]
        if workflow.is_main_process:
            for name in SAMPLES:
                refuse_foreign_sample(Paths(f"{RESULTS}/{name}"))
except UserError as error:
    raise WorkflowError(str(error)) from None

RUN = Paths(RESULTS)
SAMPLE = Paths(f"{RESULTS}/{{sample}}")
OUTPUTS = config["outputs"]
MODEL = Path(config["model"])  # where it is a path
GPUS = gpu_count(config["device"])
# `workflow.cores` refuses to be read where no --cores was given, as on a cluster.
CORES = workflow.resource_settings.cores or 4
MAX_MINUTES = config["cluster"]["max_minutes"]


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    shard=r"\d+",


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


def described(paths):
    """Return what identifies input files: a step whose input is another one is to be run again.

    Snakemake itself looks at times, and misses a file that was replaced by an older one.
    """
    return describe([*map(Path, paths)], Path(".snakemake/packedesm-inputs.json"))


def number_of_shards():
    """Return the number of shards; what ``auto`` was stands, as long as the shards do.

    Another number would make them all anew, and how many GPUs are seen changes: one is lost, the
    device is another, or finished results are looked at where there is none.
    """
    found = shard_count(config["shards"], config["device"])
    if config["shards"] != "auto":
        return found
    kept = set()
    for name, fasta in SAMPLES.items():
        there = Paths(f"{RESULTS}/{name}")
        if there.sharding.exists():
            kept.add(kept_number(there, config, described(fasta)))
    before = kept.pop() if len(kept) == 1 else None
    if before not in (None, found):
        logger.info(
            f"shards: auto stays {before}, as these results were begun; for as many as there are "
            f"GPUs now, which makes them all anew, say shards={found}"
        )
    return before or found


if workflow.is_main_process:
    SHARDS = number_of_shards()
    if config["shards"] == "auto":
        # A job on another node reads this file again and may see other GPUs there, but must plan
        # the same shards: it is told the number as if the user had.
        settings = workflow.config_settings
        settings.config_args = [*settings.config_args, f"shards={SHARDS}"]
else:
    SHARDS = shard_count(config["shards"], config["device"])


def fasta_files(wildcards):
    """Return the input of a sample."""
    fasta, there = SAMPLES[wildcards.sample], Paths(f"{RESULTS}/{wildcards.sample}")
    if workflow.is_main_process and there.sharding.exists():
        run_again(outdated_steps(RUN, there, config, described(fasta), SHARDS))
    return fasta


def described_model(_wildcards):
    """Return what identifies the weights that the user names by their path."""
    return described(model_files(MODEL)) if MODEL.exists() else []


def model_file(wildcards):
    """Return the weights as input where the user names a file, so that a new file is noticed."""
    if workflow.is_main_process:
        named = described_model(wildcards)
        run_again(outdated_checkpoint(RUN, config["model"], named))
    if MODEL.is_dir():
        return str(MODEL / "config.json")
    return str(MODEL) if MODEL.is_file() else []


def run_again(outdated):
    """Let the steps that make these files run again, as if the user had named them.

    What `.snakemake` remembers may be of another run than that whose results are there.
    """
    if RerunTrigger.PARAMS in workflow.dag_settings.rerun_triggers:
        workflow.dag.forcefiles.update(map(str, outdated))


# What a cluster is asked for. Where the files that decide it do not exist yet, Snakemake asks again
# once they do.
def minutes_to_embed(wildcards, input, attempt):
    """Return the time limit of one shard's job, from its cost and the size of the model."""
    shards = read_json(input.sharding)["shards"]
    if len(shards) == SHARDS:
        cost = shards[int(wildcards.shard)]["cost"]
    else:  # of a run with another number of shards, before the shard step runs again
        cost = sum(shard["cost"] for shard in shards) / SHARDS
    speed = config["cluster"]["tflops"]
    return embed_minutes(
        Checkpoint.read(input.checkpoint),
        cost,
        attempt,
        tflops=speed,
        max_minutes=MAX_MINUTES,
    )


def minutes_for_reference(_wildcards, input, attempt):
    """Return the time limit of the reference, from its records and the size of the model."""
    tokens = config["verify"]["sequences"] * (config["max_length"] + 2)
    return reference_minutes(
        Checkpoint.read(input.checkpoint), tokens, attempt, max_minutes=MAX_MINUTES
    )


def minutes_to_read(rate):
    """Return a function that gives the time limit of a job that handles `rate` MB/s of input."""
    return lambda _wildcards, input, attempt: transfer_minutes(
        input.size_mb, rate, attempt, max_minutes=MAX_MINUTES
    )


def megabytes_with_model(_wildcards, input, attempt):
    """Return the memory of a job that holds the model."""
    return model_megabytes(Checkpoint.read(input.checkpoint), attempt)


def megabytes(first):
    """Return a function that asks for `first` MB, and as much again with each attempt."""
    return lambda _wildcards, attempt: first * attempt
