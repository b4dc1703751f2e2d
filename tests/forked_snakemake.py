"""Snakemake's command, for a process that is forked from one that has imported it.

It imports nothing at once: who starts such a process needs no Snakemake.
"""

import os
import sys


def run(arguments: list[str], folder: str, environment: dict[str, str], with_errors: bool) -> None:
    """Do what the command does, and end with its exit status; the jobs start as ever.

    Standard error is merged into standard output, or left out.
    """
    from snakemake.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(1 if with_errors else os.open(os.devnull, os.O_WRONLY), 2)
    sys.argv = ["snakemake", *arguments]
    main()
