"""One embedding job in a process of its own, as the workflow's script runs it.

    python -m tests.embed_job JOB.json

The JSON holds root, shard, options, job, threads and log.
"""

import sys
from pathlib import Path

from packedesm.embed import embed_shard
from packedesm.files import read_json
from packedesm.joblog import job_log
from packedesm.layout import Layout

if __name__ == "__main__":
    task = read_json(Path(sys.argv[1]))
    layout = Layout(task["root"])
    with job_log(task["log"]):
        embed_shard(
            layout,
            task["shard"],
            read_json(layout.checkpoint),
            task["options"],
            task["job"],
            threads=task["threads"],
        )
