"""Parts of a made-up `make bench-gpu` that say which of them ran, in a file beside the weights."""

import os
import signal
import time

from packedesm.errors import UserError


def measure(task) -> None:
    """Do what the name of the model asks for; the count tells how often it was asked."""
    count = task.scratch / f"{task.model}.count"
    times = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(times))
    task.save({"rows": [times]})
    if task.model == "refused":
        raise UserError("there is no such device")
    if task.model == "faulty":
        raise RuntimeError("a kernel is wrong\nand more")
    if task.model == "killed" and times == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.model == "slow":
        time.sleep(600)
    if task.model == "cut":
        task.end = 0
        task.in_time()
