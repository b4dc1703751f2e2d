"""What several folders share: proteins, shards of them, figures told at the end of a run."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from packedesm.paths import Paths
from packedesm.sequences.shards import write_shards
from tests.typed import shard_options

ROOT = Path(__file__).resolve().parents[1]
FIGURE = "figure"
LONGEST = ("test_kill.py", "test_workflow.py", "test_faults.py", "test_equivalence.py")

# Tests that run side by side share the cores. torch reads this when it is imported, here and in the
# processes that tests start. A thread that waits for another is to sleep, not to spin: where two
# tests share two cores, spinning took two thirds of the CPU time of a command that embeds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_configure():
    """Refuse to run if this CPU shall pass for another one and torch does not take it for that.

    And let processes that tests start be stopped, also where these tests run in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    asked, found = os.environ.get("ATEN_CPU_CAPABILITY"), torch.backends.cpu.get_cpu_capability()
    if asked and found != asked.upper():
        raise pytest.UsageError(f"ATEN_CPU_CAPABILITY={asked}, but torch says {found}")


def pytest_collection_modifyitems(items):
    """Put the longest files first, so that none begins when the other processes are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (order.get(item.path.name, len(order)), item.path not in slow))


@pytest.fixture
def tell(record_property):
    """Return a function that puts a line of text at the end of what pytest prints."""
    return lambda text: record_property(FIGURE, text)


def pytest_terminal_summary(terminalreporter):
    """Print what tests told, also of tests that ran in processes of their own."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == FIGURE:
                terminalreporter.write_line(text)


@pytest.fixture
def root_logger():
    """Put back the logging that a job's log replaces."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def leases(tmp_path, monkeypatch):
    """A folder for the leases of GPUs of this test alone, also in processes that it starts."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))


@pytest.fixture
def forked_pools(monkeypatch):
    """Processes of pools from one that has imported everything: as spawned ones, but sooner."""
    from packedesm.embedding import pool
    from tests.forks import CONTEXT

    monkeypatch.setattr(pool, "_CONTEXT", CONTEXT)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function that lets one of the test processes fill a folder, for all of them."""

    def make(name: str, fill) -> Path:
        root = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            root = root.parent  # of the folders of the processes of this run
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def fake_cuda(made_once) -> torch.device:
    """A made-up GPU for FakeTensorMode; fake tensors have shape, dtype and device, no numbers."""
    from tests.fake_cuda.guard import compile_guard, register_guard

    register_guard(made_once("fake_cuda", compile_guard) / "libguard.so")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def uniprot_500() -> Path:
    """The shipped example: 500 UniProtKB records, 43 of them over 1,022 residues."""
    return ROOT / "examples" / "uniprot_500.fasta.gz"


@pytest.fixture(scope="session")
def forty(uniprot_500) -> dict[str, str]:
    """Forty of them spread over the lengths, the shortest first, by id."""
    from tests.fair_esm_says import spread

    return spread(uniprot_500)


@pytest.fixture(scope="session")
def eight_million(made_once, forty):
    """A model of the 8M geometry, and what fair-esm says of these forty."""
    from tests.fair_esm_says import EightMillion

    return EightMillion(made_once("eight_million", lambda path: EightMillion.fill(path, forty)))


@pytest.fixture(scope="session")
def eight(uniprot_500, tmp_path_factory) -> Path:
    """The first eight of them, for commands that run often."""
    from tests.jobs import first_records

    return first_records(uniprot_500, 8, tmp_path_factory.mktemp("input") / "eight.fasta")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A folder for models that commands make."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def quiet(eight, checkpoints, tmp_path_factory) -> dict[str, str]:
    """Digests of what a command gives for `eight` if nothing disturbs it."""
    from tests.commands import Command, bits

    run = Command(eight, tmp_path_factory.mktemp("quiet") / "out", checkpoints)
    status, _, error = run.run(fork=False)
    assert status == 0, error
    return bits(run.out)


@pytest.fixture(scope="session")
def uniprot_20k() -> Path:
    """20,000 UniProtKB records, too large to ship."""
    folder = Path(os.environ.get("PACKEDESM_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "uniprot_20k.fasta.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {folder}; PACKEDESM_DATA names its folder")
    return path


@pytest.fixture
def shard(tmp_path: Path):
    """Return a function that writes one shard from sequences and gives its paths."""

    def write(*sequences: str, **config) -> Paths:
        fasta = tmp_path / "in.fasta"
        records = (f">protein{i}\n{sequence}\n" for i, sequence in enumerate(sequences))
        fasta.write_text("".join(records))
        paths = Paths(tmp_path / "sample")
        write_shards([fasta], paths, shard_options(**config), shards=1, width=64)
        return paths

    return write


@pytest.fixture(scope="module")
def one_thread():
    """Let torch use one thread, so that sums are made in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
