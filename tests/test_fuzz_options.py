"""Whatever stands in the options, it is understood or refused in one line."""

import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from packedesm import cli
from packedesm.commands import embed
from packedesm.commands.options import schema_options
from packedesm.config import resolve, samples, schema, with_arrays
from packedesm.errors import UserError
from packedesm.esm2.registry import locate
from packedesm.options import EmbedOptions, JobOptions, ShardOptions, VerifyOptions
from tests.workflow import BIN

WORDS = (
    *("", " ", ",", "mean", "mean,max", "mean, mean", "auto", "float16", "float32 ", "full", "-"),
    *("0", "1", "-1", "+5", " 5 ", "2.0", "2.5", "010", "1:30", "0x10", "1_000", "5,000", "1e3"),
    *("1e400", "-inf", "nan", ".inf", "10" * 20, "\u0661\u0662", "true", "no", "null", "~", "None"),
    *("[]", "[1, 2]", "{}", "{a: 1}", "[" * 500, "{{x}}", "{sample}", "%s", "a" * 5000, "\ud800"),
    *("\x1b[31m", "a\nb", "\0", "../..", "/", "/dev/zero", "é", "مرحبا", "'", '"', "!!python/none"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**20, 2.0, 2.5, 1e308, math.inf, math.nan, [], {}),
    *(["mean"], ["mean", "mean"], ["mean", 3], [[]], {"a": {"b": {"c": []}}}, {1: 2}, {"x": None}),
)


def value(chance: random.Random) -> Any:
    if chance.random() < 0.1:  # nested
        return {str(value(chance))[:20]: value(chance) for _ in range(chance.randrange(3))}
    if chance.random() < 0.2:
        return [value(chance) for _ in range(chance.randrange(4))]
    return chance.choice((*WORDS, *VALUES))


DEPTH = 6  # layers of the model that is meant


def keys() -> list[str]:
    return [key for _flag, key, _described in schema_options()]


def understood(config: dict[str, Any]) -> bool:
    """Read a configuration as the workflow and the command do; False if it is refused."""
    try:
        resolved = resolve(config)
        samples(resolved["fasta"])
        locate(resolved["model"], resolved["checkpoints"])
        asked = with_arrays(resolved, DEPTH)
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable(), str(error)
        assert len(str(error)) < 2000
        return False
    for kind in (ShardOptions, EmbedOptions, JobOptions, VerifyOptions):
        kind.of(asked)
    json.dumps(resolved, default=str)
    assert resolve(resolved) == resolved  # read again, as jobs on other nodes do
    return True


def configuration(chance: random.Random, fasta: Path) -> dict[str, Any]:
    """A configuration as YAML gives it, with some odd values."""
    config: dict[str, Any] = {"fasta": str(fasta), "model": "esm2_tiny_random"}
    for key in chance.sample([*keys(), "fasta", "results", "odd key"], chance.choice((1, 1, 2, 3))):
        part, _, below = key.partition(".")
        if below and chance.random() < 0.8:
            config[part] = {below: value(chance)}
        else:
            config[part] = value(chance)
    return config


def flags(chance: random.Random, fasta: Path) -> list[str]:
    """Arguments of the command with some odd values."""
    arguments = ["embed", str(fasta), "-o", "out", "--model=esm2_tiny_random"]
    for flag, _key, _described in chance.sample(schema_options(), chance.choice((1, 1, 2, 3))):
        arguments.append(f"{flag}={chance.choice(WORDS)}")
    return arguments


COUNTS = pytest.mark.parametrize(
    ("first", "count"), [(0, 300), pytest.param(300, 10_000, marks=pytest.mark.exhaustive)]
)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.fasta"
    path.write_text(">a\nMKV\n")
    return path


@COUNTS
def test_any_configuration_is_understood_or_refused_in_one_line(fasta, first, count, tell):
    ends = [
        understood(configuration(random.Random(seed), fasta))
        for seed in range(first, first + count)
    ]
    assert 0.02 * count < sum(ends) < 0.9 * count
    tell(f"{count:,} odd configurations: {sum(ends):,} understood, the others refused")


@COUNTS
def test_any_flags_are_understood_or_refused_in_one_line(fasta, first, count, tell):
    ends = []
    for seed in range(first, first + count):
        options = cli._parser().parse_args(flags(random.Random(seed), fasta))
        try:
            ends.append(understood(embed._config(options)))
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable()
            ends.append(False)
    assert 0.02 * count < sum(ends) < 0.9 * count
    tell(f"{count:,} odd command lines: {sum(ends):,} understood, the others refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [6, pytest.param(60, marks=pytest.mark.exhaustive)], ids=lambda n: f"{n}"
)
def test_odd_flags_through_real_processes(fasta, tmp_path, count):
    for seed in range(count):
        words = [text for text in flags(random.Random(-seed - 1), fasta) if "\0" not in text]
        words = [text.encode(errors="replace").decode() for text in words]
        words[3] = str(tmp_path / f"{seed}")
        done = subprocess.run(
            [BIN / "packedesm", *words, "--checkpoints", str(tmp_path / "ck")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (0, 2), (words, done.stderr)
        assert "Traceback" not in done.stderr and "fault of packedesm" not in done.stderr
        assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("packedesm")


def test_what_yaml_reads_from_a_file_is_understood_like_text(fasta):
    """A number in config.yaml, on the command line and in --config has one meaning."""
    for text, number in (("500", 500), ("010", 10), ("2.0", 2), ("1e3", 1000)):
        config = {"fasta": str(fasta), "max_length": text}
        assert resolve(config)["max_length"] == number
    for text in ("1:30", "0x10", "1_000", "5,000", "\u0661", "nan", "10" * 20, "2.5", "true"):
        with pytest.raises(UserError, match="max_length"):
            resolve({"fasta": str(fasta), "max_length": text})
    assert schema()["properties"]["max_length"]["type"] == "integer"
    assert yaml.safe_load("x: 010")["x"] == 8  # the reading that is not ours
