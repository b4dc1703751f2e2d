"""Steps that compute no vector load none of the large libraries: they are many, and short."""

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from packedesm import cli
from packedesm.paths import Paths
from packedesm.reference.vectors import REST
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from tests.jobs import Sample, first_records
from tests.report.finished_run import off

LARGE = ("torch", "pandas", "matplotlib", "esm")
COMMAND = "from packedesm.cli import main\ntry:\n    main({})\nexcept SystemExit:\n    pass"
STEPS = {
    "help": COMMAND.format(["--help"]),
    "help of embed": COMMAND.format(["embed", "--help"]),
    "help of export": COMMAND.format(["export", "--help"]),
    "models": COMMAND.format(["models"]),
    "shard": """
from packedesm.config import resolve
from packedesm.options import ShardOptions
from packedesm.sequences.shards import write_shards
options = ShardOptions.of(resolve({"fasta": "x"}))
write_shards([fasta], Paths(paths.root / "again"), options, shards=2, width=64)""",
    "merge": """
from packedesm.results.merge import merge_shards
merge_shards(paths, 1, ["mean"])""",
    "metrics": """
from packedesm.reference.vectors import REST
from packedesm.report.metrics import write_metrics
write_metrics(paths, 1)""",
    "report": """
from packedesm.report.page import write_report
write_report(paths)""",
    "manifest": """
from packedesm.results.manifest import write_manifest
write_manifest(paths, {})""",
    "open": """
import packedesm
packedesm.open(paths.root).array("mean")""",
    "export": """
import packedesm
from packedesm.results.exports.export import Asked, export
for format in ("h5", "parquet"):
    export(packedesm.open(paths.root), Asked(format))""",
    "verify": """
from packedesm.config import resolve
from packedesm.options import VerifyOptions
from packedesm.report.verify import verify
verify(paths, VerifyOptions.of(resolve({"fasta": "x"})), shards=1)""",
}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, uniprot_500) -> tuple[Path, Paths]:
    """A FASTA file and its results, so that each step finds what it reads."""
    folder = tmp_path_factory.mktemp("light")
    fasta = first_records(uniprot_500, 5, folder / "five.fasta")
    sample = Sample(folder / "sample", fasta)
    sample.run()
    sample.write_reference(REST)
    merge_shards(sample.paths, 1, ["mean"])
    off(sample.paths)
    write_metrics(sample.paths, 1)
    write_report(sample.paths)
    write_manifest(sample.paths, {})
    return fasta, sample.paths


@pytest.mark.parametrize("step", STEPS)
def test_a_light_step_loads_no_large_library(embedded, step):
    fasta, paths = embedded
    code = f"""
from pathlib import Path
from packedesm.paths import Paths
fasta, paths = Path({str(fasta)!r}), Paths({str(paths.root)!r})
{STEPS[step]}
import sys
print("\\n" + repr([name for name in {LARGE} if name in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("step", ["help", "models"])
def test_what_is_asked_of_the_command_itself_loads_no_library_at_all(step):
    others = ("numpy", "pyarrow", "yaml", "jsonschema", "filelock", "importlib.metadata")
    code = f"{STEPS[step]}\nimport sys\nprint([n for n in {LARGE + others} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_every_command_is_known_by_its_line_and_has_its_arguments(name, capsys):
    """The rest of a command is imported when it is asked for."""
    lines = {(): cli._COMMANDS[name], (name,): f"usage: packedesm {name}"}
    for arguments, wanted in lines.items():
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--help"])
        assert end.value.code == 0
        assert wanted in " ".join(capsys.readouterr().out.split())


def test_a_job_loads_torch_and_nothing_else_that_is_large():
    code = f"import sys, packedesm.embedding.job; print([n for n in {LARGE} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "['torch']\n"


def test_a_whole_run_loads_only_what_it_works_with(tmp_path):
    """Each of these would cost a small run more than its work does."""
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n")
    arguments = ["embed", str(fasta), "-o", str(tmp_path / "out"), "--device", "cpu"]
    never = (
        "matplotlib",
        "pandas",
        "requests",
        "h5py",
        "torch._dynamo",
        "torch._inductor",
        "sympy",
    )
    code = (
        f"{COMMAND.format(arguments)}\nimport sys\nprint([n for n in {never} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()
    assert done.stdout.splitlines()[-1] == "[]"


def cpu_seconds(code: str) -> float:
    """Return what a new Python takes for `code`, with its processes; compiled files are kept."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.benchmarks
def test_what_is_not_work_costs_little(embedded, tmp_path):
    """CPU seconds, the least of interleaved rounds: a busy machine adds to some of them."""
    _fasta, paths = embedded
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">a\nVCIHTENQNQVSFYPFVLHEISVLIELTLGHLRYRLTDVPPQPNSQPDSATNYVWML\n")
    given = f"from packedesm.paths import Paths\npaths = Paths({str(paths.root)!r})\n"
    script = "import snakemake.script\n"  # as each of the workflow's scripts begins
    steps = {name: STEPS[name] for name in ("help", "models")}
    steps |= {n: script + given + STEPS[n] for n in ("merge", "metrics", "report", "manifest")}
    found: dict[str, float] = {}
    for number in range(3):
        run = ["embed", str(fasta), "-o", str(tmp_path / f"out{number}"), "--device", "cpu"]
        for name, code in {"torch": "import torch", **steps, "embed": COMMAND.format(run)}.items():
            found[name] = min(found.get(name, math.inf), cpu_seconds(code))
    bars = {"help": 0.2, "models": 0.2, "embed": 1.5 * found["torch"] + 1}
    bars |= dict.fromkeys(("merge", "metrics", "report", "manifest"), 0.6)
    print({name: round(seconds, 2) for name, seconds in found.items()})
    assert {name: found[name] for name in bars if found[name] > bars[name]} == {}


def test_a_model_is_made_without_torchs_compiler():
    """Eight hundred modules and a second of CPU time, which a layer's initialisation can cost."""
    code = """
import sys
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
PackedESM2(MODELS["esm2_tiny_random"])
print("torch._dynamo" in sys.modules)"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


PUBLIC = {
    "packing": (
        "SequenceDataset FirstFitDecreasingPacker VarlenCollator PackedBatch "
        "create_async_dataloader"
    ),
    "esm2": "PackedESM2 varlen_attention",
    "embedding": "AsyncInferenceRunner",
    "device": "GPUMonitor",
    "results": "Results open",
}


def test_public_names_come_from_their_rooms_and_from_the_package():
    import packedesm

    for room, names in PUBLIC.items():
        for name in names.split():
            found = getattr(__import__(f"packedesm.{room}", fromlist=[name]), name)
            assert found is getattr(packedesm, name)
            assert found.__module__.startswith(f"packedesm.{room}.")
            assert name in packedesm.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        packedesm.nothing  # noqa: B018
