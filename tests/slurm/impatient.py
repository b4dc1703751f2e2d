"""Snakemake whose Slurm executor asks every second how its jobs are.

After each question to which no job had ended, the executor waits ten seconds longer for the next,
up to three minutes: of a run of short jobs most of the time would be spent in these pauses.
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep(_executor: RemoteExecutor) -> None:
    await asyncio.sleep(1)


if __name__ == "__main__":
    RemoteExecutor.sleep = sleep
    main()
