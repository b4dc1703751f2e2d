"""Every way of asking for a GPU that the profile offers is one that Slurm understands."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.slurm.runs import IMPATIENT, SAMPLE, job_field, start
from tests.workflow import ROOT, snakemake, write_config

PROFILE = ROOT / "profiles" / "slurm" / "profile.yaml"
# What a job of each way is to be known by; the type is what the block offers besides.
ASKED = {
    "gpu": ("TresPerJob", "gres:gpu:1"),
    "gres": ("TresPerNode", "gres:gpu:1"),
    "gpus_per_task": ("TresPerTask", "gres:gpu:1"),
}


def without(text: str) -> str:
    """Return the lines of a block as comments."""
    return re.sub(r"^    (?=\w)", "    # ", text, flags=re.MULTILINE)


def ways() -> dict[str, str]:
    """Return the profile with each way of asking for a GPU, as a user would edit it."""
    text = PROFILE.read_text("utf-8")
    head, *blocks = re.split(r"^    # (?=\w+, which is --g)", text, flags=re.MULTILINE)
    last, end, tail = blocks[-1].partition("\nset-threads:")
    blocks[-1] = last
    found = {}
    for number, block in enumerate(blocks):
        others = [without(x) if place != number else x for place, x in enumerate(blocks)]
        line, *rest = block.split("\n")
        # Of what is offered the type of GPU is left out.
        rest = [re.sub(r"^    # (?=(gpu|gres|slurm_extra): )", "    ", x) for x in rest]
        others[number] = "\n".join([line, *rest])
        found[line.partition(",")[0]] = "    # ".join([head, *others]) + end + tail
    return found


def test_the_profile_offers_three_ways_and_each_of_them_is_one_set_of_resources():
    assert ways().keys() == ASKED.keys()
    embed = {name: yaml.safe_load(text)["set-resources"]["embed"] for name, text in ways().items()}
    assert embed == {
        "gpu": {"gpu": 1},
        "gres": {"gpu": 0, "gres": "gpu:1"},
        "gpus_per_task": {"gpu": 0, "slurm_extra": "'--gpus-per-task=1'"},
    }
    assert yaml.safe_load(PROFILE.read_text("utf-8")) == yaml.safe_load(ways()["gpu"])


def test_the_profile_submits_no_job_arrays():
    settings = yaml.safe_load(PROFILE.read_text("utf-8"))
    assert settings["executor"] == "slurm" and "slurm-array-jobs" not in settings


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory, eight) -> Path:
    """A run of one shard that is to be embedded."""
    folder = tmp_path_factory.mktemp("prepared")
    write_config(folder, fasta=str(eight), shards=1, device="cpu", verify={"sequences": 1})
    sample = SAMPLE.root.parent / eight.stem
    needed = [str(sample / ".work" / name) for name in ("reference/first.json", "sharding.json")]
    done = snakemake(folder, *needed)
    assert done.returncode == 0, done.stdout
    return folder


def test_slurm_gives_one_gpu_to_a_job_whichever_way_it_is_asked(prepared, tmp_path, eight):
    runs = {}
    for name, text in ways().items():
        profile, folder, seen = (tmp_path / name / x for x in ("profile", "run", "seen"))
        for path in (profile, seen):
            path.mkdir(parents=True)
        (profile / "profile.yaml").write_text(text)
        shutil.copytree(prepared, folder)
        watch = {
            "PYTHONPATH": f"{Path(__file__).parent / 'seen'}:{ROOT / 'src'}",
            "PACKEDESM_TEST_SEEN": str(seen),
        }
        sample = SAMPLE.root.parent / eight.stem
        target = str(sample / ".work" / "embeddings" / "0" / "run.json")
        options = ("--profile", str(profile), *IMPATIENT)
        runs[name] = start(folder, *options, target, environment=watch)
    for name, run in runs.items():
        (job,) = re.findall(r"SLURM jobid (\d+)", run.finish())
        field, value = ASKED[name]
        assert job_field(job, field) == value, name
        (visible,) = [x.read_text() for x in (tmp_path / name / "seen").iterdir() if x.name == job]
        assert visible in ("0", "1"), name
        assert job_field(job, "NumCPUs") == "4"
