"""A process that outgrows its memory: Python runs this first where its folder is on PYTHONPATH.

The process that embeds a shard, in the first attempt, takes `LEAK` more bytes once it has committed
a part, and then waits: it will be killed by who watches the memory.
"""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

LEAK = 3 << 29
leaked = []  # outlives the thread that fills it: the process stops a moment after the signal


def leak(state: Path) -> None:
    while not has_committed_first(state):
        time.sleep(0.005)
    leaked.append(b"\1" * LEAK)
    os.kill(os.getpid(), signal.SIGSTOP)


def has_committed_first(state: Path) -> bool:
    """Tell whether this process embeds the shard, as the first to do so, and has made a part."""
    with suppress(OSError, ValueError):
        owner = json.loads((state / "owner.json").read_text())
        mine = owner["pid"] == os.getpid() and any(state.glob(f"*-{owner['token']}.commit"))
        return mine and (state / f"attempt-0001-{owner['token']}").exists()
    return False


if folder := os.environ.get("PACKEDESM_TEST_LEAK"):
    threading.Thread(target=leak, args=(Path(folder),), daemon=True).start()
