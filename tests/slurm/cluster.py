"""A real Slurm on this machine: one controller, two nodes, four GPUs that are not there.

It needs root and Debian's packages (install.sh), and while it runs, its configuration stands in
``/etc/slurm``: the jobs look for it there and nowhere else. So it is meant for a machine that has
nothing to do with another Slurm.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
ETC = Path("/etc/slurm")
CONFIGURATION = ("slurm.conf", "gres.conf")
NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")


def what_is_missing() -> str | None:
    """Return why a cluster cannot be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (tests/slurm/install.sh)"
    if os.geteuid() != 0:
        return "the daemons of a Slurm on one machine must be started by root"
    if (ETC / "slurm.conf").exists() and not is_ours(ETC):
        return f"{ETC / 'slurm.conf'} belongs to another cluster"
    return None


def is_ours(etc: Path) -> bool:
    """Say whether a folder holds the configuration of this cluster."""
    path = etc / "slurm.conf"
    return path.exists() and "ClusterName=packedesm-lab" in path.read_text("utf-8")


class Cluster:
    """The daemons, by name, and what tests do to them."""

    def __init__(self, state: Path, etc: Path = ETC) -> None:
        self.state = state
        self._etc = etc
        self._before: dict[Path, bytes | None] = {}
        self._daemons: dict[str, subprocess.Popen] = {}

    def configure(self) -> None:
        """Write the configuration; `stop` puts back what stood in its place."""
        for directory in (self._etc, self.state / "slurmctld", *(self.state / n for n in NODES)):
            directory.mkdir(parents=True, exist_ok=True)
        names = {"host": socket.gethostname().partition(".")[0], "state": self.state}
        left_over = is_ours(self._etc)  # by tests that were killed: nothing to keep
        for name in CONFIGURATION:
            path = self._etc / name
            kept = path.exists() and not left_over
            self._before[path] = path.read_bytes() if kept else None
            path.write_text((HERE / name).read_text("utf-8").format(**names), "utf-8")

    def start(self) -> None:
        """Start everything and wait until both nodes take jobs."""
        self.configure()
        for gpu in ("gpu0", "gpu1"):
            os.mknod(self.state / gpu, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        Path("/run/munge").mkdir(exist_ok=True)
        files = [f"--{name}-file={self.state}/munge.{name}" for name in ("key", "pid", "log")]
        seed = f"--seed-file={self.state}/munge.seed"
        self._spawn("munged", "munged", "--foreground", "--force", *files, seed)
        wait_until(lambda: succeeds("munge", "-n"), 20, "munged to answer")
        self.start_controller()
        for node in NODES:
            self.start_node(node)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._spawn("slurmctld", "slurmctld", "-D")
        wait_until(lambda: succeeds("scontrol", "ping"), 20, "slurmctld to answer")

    def start_node(self, node: str) -> None:
        """Start the daemon of one node and wait until it takes jobs."""
        self._spawn(node, "slurmd", "-D", "-N", node)
        wait_until(lambda: self.node_state(node) in ("idle", "mixed"), 60, f"{node} to be ready")

    def kill(self, daemon: str) -> None:
        """End one daemon as a power cut would: ``slurmctld``, ``n1`` or ``n2``."""
        process = self._daemons.pop(daemon)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """Cancel every job, stop every daemon, newest first, and take the configuration away.

        A step that ended while the controller was away tries for minutes to tell it: it is killed.
        Whatever asks Slurm where there is a configuration and no controller waits for seconds:
        Snakemake does so at every start.
        """
        try:
            if "slurmctld" in self._daemons:
                self.cancel_jobs()
        finally:
            self._stop_daemons()
            for process in self._step_processes():
                os.kill(process, signal.SIGKILL)
            for path, content in self._before.items():
                if content is None:
                    path.unlink()
                else:
                    path.write_bytes(content)
            self._before.clear()

    def cancel_jobs(self) -> None:
        """Cancel every job, and wait until they have ended."""
        subprocess.run(["scancel", "--full", "--user=root"], timeout=60, check=False)
        wait_until(lambda: not output("squeue", "--noheader"), 60, "the jobs to end")

    def node_state(self, node: str) -> str:
        """Return Slurm's short word for the state of a node, such as ``idle`` or ``down*``."""
        return output("sinfo", "--noheader", "--nodes", node, "--partition=gpu", "--format=%t")

    def _stop_daemons(self) -> None:
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()

    def _step_processes(self) -> set[int]:
        """Return the processes of job steps, known by the sockets that they hold in our folder."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        paths = {fields[6]: fields[7] for fields in map(str.split, lines) if len(fields) == 8}
        ours = [inode for inode, path in paths.items() if path.startswith(f"{self.state}/")]
        held = {f"socket:[{inode}]" for inode in ours}
        found = set()
        for path in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):  # it has just ended
                if str(path.readlink()) in held:
                    found.add(int(path.parts[2]))
        return found

    def _spawn(self, name: str, *command: str) -> None:
        """Start a daemon that the kernel ends when this process dies."""
        with (self.state / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if key != "SLURM_CONF"},
            )


def output(*command: str) -> str:
    """Run a command that must succeed and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def succeeds(*command: str) -> bool:
    """Say whether a command succeeds."""
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def wait_until(
    condition: Callable[[], object], seconds: float, what: str, poll: float = 0.2
) -> None:
    """Wait until `condition()` is true, or raise TimeoutError that says what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(poll)
