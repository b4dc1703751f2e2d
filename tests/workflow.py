"""Run Snakemake as a user does: in a process of its own, in a folder with a config.yaml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from packedesm.config import resolve, samples
from packedesm.errors import UserError
from packedesm.esm2.input_files import files_as_named
from tests import forked_snakemake
from tests.forks import Forked
from tests.number_format import NUMBER_FORMAT

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def write_config(folder: Path, **config) -> None:
    """Write the config.yaml of a run in `folder`; checkpoints are kept out of the user's home."""
    folder.mkdir(parents=True, exist_ok=True)
    config.setdefault("checkpoints", str(folder / "checkpoints"))
    config.setdefault("model", "esm2_tiny_random")  # the fastest; its vectors mean nothing
    (folder / "config.yaml").write_text(yaml.safe_dump(NUMBER_FORMAT | config))


def snakemake(
    folder: Path,
    *arguments: str,
    with_errors: bool = True,
    snakefile: Path = ROOT / "Snakefile",
    start_in: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run a workflow, ours if none is given, in `folder`; `start_in` is where profiles are found.

    Where that is `folder` itself, a scheduler's jobs run wherever the scheduler starts them.
    Standard error is merged into standard output.
    """
    directory = [] if start_in == folder else ["--directory", str(folder)]
    command = ["--snakefile", str(snakefile), *directory, "--cores", "2", *arguments]
    # Not that of the process which is forked: tests change it.
    environment = dict(os.environ)
    process = Forked(forked_snakemake.run, command, str(start_in), environment, with_errors)
    printed, _ = process.communicate(timeout=600)
    return subprocess.CompletedProcess(command, process.returncode, printed)


def refusal(config: dict) -> str:
    """Return why the workflow refuses a config.yaml: what rules/common.smk asks, in its order."""
    with pytest.raises(UserError) as caught:
        resolved = resolve(config)
        samples(resolved["fasta"])
        files_as_named(resolved["model"], str)
    return str(caught.value)


def jobs_run(output: str) -> set[str]:
    """Return the rules that a run's table of jobs lists, without `all`."""
    _, _, table = output.partition("Job stats:")
    rules = set()
    for line in table.splitlines()[3:]:
        if not line or line.startswith("total"):
            break
        rules.add(line.split()[0])
    return rules - {"all"}
