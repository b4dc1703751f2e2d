"""Snakemake's own unit tests, as CONTRIBUTING.md says how to have them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import BIN, ROOT

SOURCES = ("Snakefile", "rules", "scripts", "envs", "report", "profiles")


@pytest.fixture(scope="module")
def generated(finished, tmp_path_factory) -> Path:
    """A checkout where the workflow was run, with the tests that were generated then."""
    checkout = tmp_path_factory.mktemp("generated") / "checkout"
    shutil.copytree(finished, checkout)
    for name in SOURCES:
        (checkout / name).symlink_to(ROOT / name)
    # Not forked: it writes paths relative to the folder where it was imported.
    command = [BIN / "snakemake", "--cores", "2", "--generate-unit-tests"]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shutil.copy(ROOT / "tests" / "generated_common.py", checkout / ".tests" / "unit" / "common.py")
    return checkout


OTHERS = ("checkpoint", "shard", "reference", "merge", "metrics", "verify", "report", "manifest")


@pytest.mark.parametrize(
    "rule", ["embed", *(pytest.param(rule, marks=pytest.mark.exhaustive) for rule in OTHERS)]
)
@pytest.mark.slow
def test_generated_tests_pass(generated, rule):
    command = [sys.executable, "-m", "pytest", "-q", f".tests/unit/test_{rule}.py"]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        command, cwd=generated, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
