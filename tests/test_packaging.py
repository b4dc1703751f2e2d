"""The same versions everywhere: what is tested is what users get."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    return {name.lower(): version for name, version in pins}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_pins_every_requirement_within_its_range():
    extras = project()["optional-dependencies"]
    for text in [*project()["dependencies"], *extras["dev"], *extras["slurm"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked()[requirement.name.lower()]), text


def test_the_conda_environment_has_the_pins_of_the_lock():
    environment = yaml.safe_load((ROOT / "envs" / "packedesm.yaml").read_text())
    pins = dict(text.lower().split("==") for text in environment["dependencies"][-1]["pip"])
    assert pins.items() <= locked().items()
    assert set(pins) == {Requirement(text).name.lower() for text in project()["dependencies"]}


def test_every_rule_has_what_a_rule_must_have():
    wanted = {"message", "log", "benchmark", "threads", "resources", "conda", "script"}
    rules = 0
    for path in (ROOT / "rules").glob("*.smk"):
        for body in re.split(r"^rule ", path.read_text(), flags=re.M)[1:]:
            rules += 1
            assert wanted <= set(re.findall(r"^    (\w+):", body, flags=re.M)), body.split(":")[0]
            script = re.search(r'"\.\./scripts/(\w+)\.py"', body).group(1)
            assert (ROOT / "scripts" / f"{script}.py").exists()
            assert (ROOT / "tests" / "rules" / f"test_{script}.py").exists()
    assert rules == 10


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of what git tracks, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in listed.split("\0"):
        if name in ("pyproject.toml", "setup.py", "README.md", "LICENSE") or name[:4] == "src/":
            target = folder / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([*pip, *build, folder / "checkout"], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.slow  # the kernels are compiled
def test_a_wheel_holds_every_room_and_runs_away_from_the_checkout(installed, tmp_path):
    source = ROOT / "src" / "packedesm"
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.suffix in (".py", ".j2")}
    wanted |= {Path("py.typed"), Path("config.schema.yaml"), Path("data/esm2_t6_3M_demo.pt")}
    found = {p.relative_to(installed / "packedesm") for p in installed.rglob("packedesm/**/*")}
    assert wanted <= found
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKVLAAGIV\n>b\nMKVLAAGLLL\n")
    code = (
        "from packedesm.cli import main; print(main.__code__.co_filename); raise SystemExit(main())"
    )
    command = [sys.executable, "-c", code, "embed", "in.fasta", "-o", "out"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    if platform.machine() == "x86_64" and sys.platform == "linux":
        assert "attention backend varlen_cpu" in done.stderr  # the kernels came along
