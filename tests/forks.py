"""Processes forked from one that has imported what they need: up to two CPU seconds less each."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

# What a signal does to such a process, and what it leaves, is the same as for one that a shell
# starts. Environment and working folder are those of the process that is forked.
CONTEXT = multiprocessing.get_context("forkserver")
# What Snakemake and the rules import, some of it late.
SNAKEMAKE = ["snakemake.workflow", "snakemake.report", "packedesm.cluster", "packedesm.device.gpus"]
CONTEXT.set_forkserver_preload(
    ["packedesm.pipeline", "tests.embed_job", "snakemake.cli", "jsonschema", *SNAKEMAKE]
)


class Forked:
    """A function in a process of its own; tests use it like a `subprocess.Popen` in text mode.

    The function is one that a module holds; what it returns is the exit status.
    """

    def __init__(self, function: Callable[..., int | None], *arguments: object) -> None:
        self._streams = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115, in communicate
        names = [stream.name for stream in self._streams]
        self._process = CONTEXT.Process(target=_run, args=(names, function, arguments))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what went to standard output and to standard error."""
        self.wait(timeout)
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(io.TextIOWrapper(stream).read())
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(names: list[str], function: Callable[..., int | None], arguments: tuple) -> None:
    for name, stream in zip(names, (sys.stdout, sys.stderr), strict=True):
        handle = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, stream.fileno())
        os.close(handle)
    sys.exit(function(*arguments))
