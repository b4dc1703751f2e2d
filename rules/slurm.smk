import sys


def last_answer(ask):
    """Return a function that answers as `ask` does, or as it last did when it has no answer."""
    known = None

    def answer():
        nonlocal known
        known = ask() or known
        return known

    return answer


# Before each look at its jobs the Slurm executor (2.8) asks the controller how long that remembers
# finished ones. If the controller is away at that moment, it turns from squeue to sacct, and where
# Slurm keeps no accounts it waits for ever. The last answer will do. Snakemake has loaded the
# executor, if it is installed.
if executor := sys.modules.get("snakemake_executor_plugin_slurm"):
    executor.get_min_job_age = last_answer(executor.get_min_job_age)
