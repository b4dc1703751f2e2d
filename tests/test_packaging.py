"""The same versions everywhere: what is tested is what users get."""

import re
import tomllib
from pathlib import Path

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
    assert rules == 8
