import os
import subprocess
from pathlib import Path

import pytest
import yaml
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_executor_plugins.utils import (
    TargetSpec,
    encode_target_jobs_cli_args,
    format_cli_arg,
)

from packedesm.config import resolve, sample_name, samples, schema
from packedesm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_is_described_and_has_a_default():
    for key, described in schema()["properties"].items():
        assert described["description"]
        assert key == "fasta" or "default" in described


def test_the_shipped_config_says_nothing_else_than_the_defaults():
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert resolve(shipped) == resolve({"fasta": shipped["fasta"]})


def test_defaults_reach_nested_keys():
    assert resolve({"fasta": "x", "verify": {"sequences": 3}})["verify"]["min_cosine"] == 0.9995


def test_numbers_and_truth_values_may_come_as_text():
    # Snakemake reads what is nested in --config as text.
    given = {"fasta": "1", "shards": "4", "deduplicate": "false", "verify": {"min_cosine": "0.9"}}
    resolved = resolve(given)
    assert (resolved["fasta"], resolved["shards"]) == ("1", 4)
    assert resolved["deduplicate"] is False
    assert resolved["verify"]["min_cosine"] == 0.9


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fasta": "x", "modle": "y"}, ["'modle'", "did you mean 'model'"]),
        ({"fasta": "x", "verify": {"cosine": 1}}, ["'verify.cosine'", "min_cosine"]),
        ({}, ["'fasta'", "missing"]),
        ({"fasta": "x", "dtype": "fp16"}, ["dtype", "'fp16'", "float16"]),
        ({"fasta": "x", "shards": 0}, ["shards", "0", "'auto'", "at least 1"]),
        ({"fasta": "x", "outputs": ["men"]}, ["outputs", "'men'", "mean"]),
        ({"fasta": []}, ["fasta", "list"]),
        (
            {"fasta": "x", "long_sequences": "window", "window_overlap": 1022},
            ["window_overlap", "1022", "max_length"],
        ),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(config, words):
    with pytest.raises(UserError) as caught:
        resolve(config)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("proteins.fasta", "proteins"),
        ("proteins.fa.gz", "proteins"),
        ("a.b.FAA.bgz", "a.b"),
        ("proteins", "proteins"),
        ("x.txt", "x.txt"),
        (".fasta", ".fasta"),
    ],
)
def test_a_sample_is_named_by_its_file(name, sample):
    assert sample_name(Path("some/folder") / name) == sample


def test_samples_from_a_path_a_list_and_a_mapping(tmp_path):
    a, b = tmp_path / "a.fasta", tmp_path / "b.fa"
    a.touch()
    b.touch()
    assert samples(str(a)) == {"a": [a]}
    assert samples([str(a), str(b)]) == {"a": [a], "b": [b]}
    assert samples({"x": str(a), "y": [str(a), str(b)]}) == {"x": [a], "y": [a, b]}


def test_samples_that_cannot_be_told_apart_are_refused(tmp_path):
    for name in ("a.fasta", "a.fa"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="both sample 'a'"):
        samples([str(tmp_path / "a.fasta"), str(tmp_path / "a.fa")])


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".hidden",
        "a/b",
        "a\nb",
        "{x}",
        "",
        "a,b",
        "$(x)",
        "`x`",
        "it's",
        'a"b',
        "50%",
        "<x>",
        "a\u202eb",
        "é0" * 67,
        "x" + "ab" * 20,
    ],
)
def test_a_sample_that_cannot_name_a_folder_is_refused(tmp_path, name):
    (tmp_path / "a.fasta").touch()
    with pytest.raises(UserError, match="cannot name a folder"):
        samples({name: str(tmp_path / "a.fasta")})


def test_a_folder_is_no_fasta(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        samples(str(tmp_path))


def test_a_fasta_may_come_later_and_is_looked_for_in_its_place(tmp_path):
    assert samples("later.fasta") == {"later": [Path("later.fasta")]}
    (tmp_path / "later.fasta").mkdir()
    with pytest.raises(UserError, match=r"/later\.fasta: is a folder"):
        samples("later.fasta", lambda path: f"{tmp_path}/{path}")


def test_each_character_that_a_sample_may_hold_survives_snakemakes_shells(tmp_path):
    # A scheduler's submission quotes a job's wildcards as in the local case, and that again in
    # double quotes in which only these are escaped.
    (tmp_path / "a.fasta").touch()
    allowed = [c for c in map(chr, range(0x20, 0x250)) if accepted(f"x{c}y", tmp_path)]
    assert set("abcXYZ0189 .-_()[]+@;&|*?!#~^=:é") <= set(allowed)
    assert not set("$`\"'\\,/{}<>%\n\x1b\x9b") & set(allowed)
    name = "x" + "".join(allowed) + "y"
    spec = encode_target_jobs_cli_args([TargetSpec("embed", {"sample": name, "shard": "0"})])
    argument = format_cli_arg("--target-jobs", spec)
    escaped = argument.replace('"', '\\"')
    wrapped = shell(f'printf %s "{escaped}"')
    assert wrapped == argument
    assert shell(f"printf '%s\\n' {wrapped}").splitlines() == ["--target-jobs", *spec]
    (parsed,) = parse_target_jobs_cli_args(spec)
    assert parsed.wildcards_dict == {"sample": name, "shard": "0"}


def accepted(name: str, folder: Path) -> bool:
    try:
        samples({name: str(folder / "a.fasta")})
    except UserError:
        return False
    return True


def shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("text", "number"),
    [("2.0", 2), ("010", 10), ("+3", 3), (" 4 ", 4), ("1e2", 100), (2.0, 2), ("1e1", 10)],
)
def test_whole_numbers_are_read_as_people_write_them(text, number):
    shards = resolve({"fasta": "x", "shards": text})["shards"]
    assert shards == number and type(shards) is int


@pytest.mark.parametrize(
    "text",
    [
        *("1:30", "0x10", "1_000", "2.5", "0o7", "1e20", "100000000000000000000", 10**20, "-1"),
        *("nan", "\N{ARABIC-INDIC DIGIT THREE}", "1" * 10_000, "", "2,0"),
    ],
)
def test_what_is_no_whole_number_is_refused_and_never_another_number(text):
    with pytest.raises(UserError, match="config key shards: "):
        resolve({"fasta": "x", "shards": text})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), "nan", ".inf", "1e999"]
)
@pytest.mark.parametrize("key", ["min_cosine", "max_relative_l2"])
def test_a_threshold_that_nothing_can_miss_is_refused(key, value):
    with pytest.raises(UserError, match=rf"config key verify\.{key}: "):
        resolve({"fasta": "x", "verify": {key: value}})


@pytest.mark.parametrize("value", [-1, -0.1, 10_000, 0, "1e5"])
def test_an_absurd_distance_is_refused(value):
    with pytest.raises(UserError, match=r"config key verify\.max_relative_l2"):
        resolve({"fasta": "x", "verify": {"max_relative_l2": value}})


def test_a_pipe_is_no_input_of_the_workflow(tmp_path):
    pipe = tmp_path / "pipe.fasta"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="can be read only once"):
        samples(str(pipe))


def test_a_home_is_expanded_for_every_folder_and_the_model(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = {"results": "~/results", "checkpoints": "~", "model": "~/mine.pt"}
    resolved = resolve({"fasta": "a.fasta", **paths})
    expected = ("/home/me/results", "/home/me", "/home/me/mine.pt")
    assert tuple(resolved[key] for key in paths) == expected


def test_an_output_that_is_named_twice_is_told_so():
    with pytest.raises(UserError, match="names one twice"):
        resolve({"fasta": "a.fasta", "outputs": ["mean", "mean"]})


def test_contacts_of_windows_are_refused():
    asked = {"fasta": "in.fasta", "outputs": ["mean", "contacts"]}
    assert resolve(asked)["outputs"] == ["mean", "contacts"]
    with pytest.raises(UserError, match=r"cut into windows.*long_sequences to truncate") as caught:
        resolve(asked | {"long_sequences": "window"})
    assert "\n" not in str(caught.value)
