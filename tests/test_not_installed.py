"""The workflow where packedesm is not installed in the Python that runs Snakemake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import ROOT

POST_DEPLOY = ROOT / "envs" / "packedesm.post-deploy.sh"
# Snakemake in a Python without the modules that are named first.
WITHOUT = """
import sys
from pathlib import Path
if "packedesm" in sys.argv[1].split(","):
    sys.path = [path for path in sys.path if not (Path(path) / "packedesm/paths.py").exists()]
sys.modules |= {name: None for name in sys.argv.pop(1).split(",") if name != "packedesm"}
from snakemake.cli import main
sys.exit(main())
"""


def snakemake_without(modules: str, folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-c", WITHOUT, modules, "--snakefile", str(ROOT / "Snakefile")]
    run = subprocess.run(
        [*command, "--cores", "1", *arguments, "--config", "fasta=in.fasta"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return run.returncode, run.stdout


def test_what_is_missing_is_said_in_one_line_with_what_to_do(tmp_path):
    (tmp_path / "packedesm").mkdir()  # is no package, whatever it is called
    status, printed = snakemake_without("packedesm", tmp_path, "--dry-run")
    assert status == 1
    line = f"has no packedesm; install it by: {sys.executable} -m pip install '{ROOT}'"
    assert line in printed
    assert "Traceback" not in printed


def test_a_bare_checkout_can_be_looked_at(tmp_path):
    status, printed = snakemake_without("packedesm", tmp_path, "--lint")
    assert status == 0, printed
    status, printed = snakemake_without("packedesm,filelock,pynvml", tmp_path, "--lint")
    assert status == 1
    assert "has no filelock, nvidia-ml-py; install it by:" in printed
    assert "pip install filelock nvidia-ml-py" in printed


@pytest.fixture
def post_deploy(tmp_path):
    """Return a function that runs what conda runs, in a folder with a checkout of another's."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"

    def run(told: str | None) -> tuple[int, str, list[str]]:
        if told is not None:
            (tmp_path / ".snakemake").mkdir()
            (tmp_path / ".snakemake" / "packedesm-checkout").write_text(told)
        command = ["bash", str(POST_DEPLOY)]
        environment = os.environ | {"PATH": path}
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        asked = tmp_path / "asked"
        return run.returncode, run.stderr, asked.read_text().split("\n") if asked.exists() else []

    return run


def test_conda_gets_the_checkout_of_the_snakefile(post_deploy):
    status, _, asked = post_deploy(f"{ROOT}\n")
    assert status == 0
    assert asked[:5] == ["-m", "pip", "install", "--no-deps", str(ROOT)]


@pytest.mark.parametrize("told", [None, "", ".", "https://example.org/packedesm"])
def test_conda_gets_nothing_that_is_no_checkout(post_deploy, told):
    status, error, asked = post_deploy(told)
    assert status == 1
    assert "is no checkout of it; clone it and use the Snakefile in there" in error
    assert asked == []
