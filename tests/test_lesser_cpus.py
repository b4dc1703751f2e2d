"""A CPU that shall pass for a lesser one does, and a whole run is right on what it passes for."""

import html
import os
import subprocess

import pytest
import torch

from packedesm.files import read_json
from packedesm.paths import Paths
from tests import lesser_cpus
from tests.jobs import first_records
from tests.lesser_cpus import CPUS, MARK, ONEDNN, TESTS, Seen, marked, see, unavailable_reason
from tests.workflow import BIN

HERE = torch.backends.cpu.get_cpu_capability()
HALF, AVX2, DEFAULT = CPUS


@pytest.mark.cpu
def test_torch_and_onednn_are_what_the_environment_asks_for():
    capability, isa = see({})
    assert capability == HERE  # which conftest.py has compared with the setting
    asked = [cpu.isa for cpu in CPUS if cpu.onednn == os.environ.get(ONEDNN)]
    assert isa is None or not asked or [isa] == asked


def test_torch_and_onednn_take_this_cpu_for_every_lesser_one():
    own = see({})
    for cpu in CPUS:
        if unavailable_reason(cpu, own) is None:
            capability, isa = see(cpu.settings)
            assert capability == cpu.aten.upper()
            assert isa in (None, cpu.isa)


@pytest.mark.parametrize(
    ("capability", "isa", "lesser"),
    [
        ("AVX512", "Intel AVX-512 with Intel DL Boost and bfloat16 support", [HALF, AVX2, DEFAULT]),
        ("AVX512", HALF.isa, [AVX2, DEFAULT]),
        ("AVX2", "Intel AVX2 with Intel DL Boost, float16 and bfloat16 support", [AVX2, DEFAULT]),
        ("AVX2", AVX2.isa, [DEFAULT]),
        ("AVX2", None, [DEFAULT]),
        ("DEFAULT", DEFAULT.isa, []),
        ("SVE256", None, []),
    ],
)
def test_a_cpu_passes_for_every_lesser_one_and_for_no_other(capability, isa, lesser, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert [cpu for cpu in CPUS if unavailable_reason(cpu, Seen(capability, isa)) is None] == lesser


def test_a_setting_that_torch_does_not_obey_stops_the_tests():
    command = [BIN / "python", "-m", "pytest", "--collect-only", __file__]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ATEN_CPU_CAPABILITY=avx3, but torch says" in done.stderr


def test_the_mark_is_named_in_every_file_that_gives_it_and_nowhere_else():
    """Only files of tests that name it are read there; a conftest.py could give it to others."""
    naming = {str(path) for path in TESTS.rglob("*.py") if MARK in path.read_text()}
    assert naming - {lesser_cpus.__file__} == {*marked()}
    assert __file__ in marked()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_is_verified(tmp_path, uniprot_500, dtype):
    fasta = first_records(uniprot_500, 6, tmp_path / "in.fasta")
    out = Paths(tmp_path / "out")
    options = ["--model", "esm2_tiny_random", "--checkpoints", tmp_path, "--dtype", dtype]
    options += ["--max-length", "200", "--verify-sequences", "6"]
    command = [BIN / "packedesm", "embed", fasta, "-o", out.root, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    verification = read_json(out.verification)
    assert verification["passed"] is True and verification["sequences"] == 6
    (run,) = read_json(out.metrics)["runs"]
    plan = run["plan"]
    assert plan["dtype"] == dtype
    backend, reason = plan["attention"], plan["reasons"]["attention"]
    if dtype == "float32":
        assert backend == ("varlen_cpu" if HERE in ("AVX512", "AVX2") else "sdpa"), reason
    elif HERE != "AVX512":
        assert backend == "sdpa", reason
    page = html.unescape(out.report.read_text())
    assert f"<code>{backend}</code>: {reason}" in page
    slow = "has no instructions for bfloat16"
    assert (slow in done.stderr) == (slow in page)
    if dtype == "float32":
        assert slow not in page
    elif HERE != "AVX512" or os.environ.get(ONEDNN) == HALF.onednn:
        assert slow in page
