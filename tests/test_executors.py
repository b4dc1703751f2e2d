"""A scheduler of one's own, whose jobs share nothing with the run but a storage.

Each job has a machine of its own: an empty folder, and an environment without what the run was
started with. So all that it needs has to come by its inputs, parameters and resources.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import packedesm
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.registry import MODELS, TINY
from packedesm.files import read_record
from packedesm.paths import Paths
from tests.workflow import BIN, ROOT, snakemake

pytestmark = pytest.mark.slow

# The machines lie in `machines`; what each job asks for is a line of `asked`.
SUBMIT = f"""#!/bin/sh
cd "$(dirname "$0")"
echo "$1" >> asked
machine=$(mktemp -d "$PWD/machines/XXXXXXXX")
cd "$machine"
(
  env -i PATH="$PWD/../../bin:{BIN}:/usr/bin:/bin" PYTHONPATH="{ROOT}/src" sh "$2" > printed 2>&1
  echo $? > status
) > /dev/null 2>&1 &
echo "$machine"
"""
STATUS = """#!/bin/sh
case $(cat "$1/status" 2> /dev/null) in
  "") echo running ;;
  0) echo success ;;
  *) echo failed ;;
esac
"""
# Does what the plugin for storages asks of rsync, wherever there is none.
RSYNC = f"""#!{sys.executable}
import shutil, sys
source, target = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
shutil.copy2(source, target)
"""
ASKED = ("rule", "threads", "resources.mem_mb", "resources.runtime", "resources.gpu")


class Site:
    """A scheduler, a storage, and the folder that runs are started in."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.bucket, self.folder = root, root / "bucket", root / "run"
        for path in (self.bucket, self.folder, root / "machines", root / "bin"):
            path.mkdir()
        programs = {"submit": SUBMIT, "status": STATUS, "bin/rsync": RSYNC}
        for name, program in programs.items():
            (root / name).write_text(program)
            (root / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{BIN}:/usr/bin:/bin")
        # Nothing of a run may come from here.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def run(self, proteins: dict[str, str], shards: int, group: int, *targets: str) -> None:
        """Embed proteins in so many shards, and submit the jobs of `group` shards as one."""
        text = "".join(f">{name}\n{sequence}\n" for name, sequence in proteins.items())
        (self.bucket / "in.fasta").write_text(text)
        write_random_checkpoint(self.bucket / "mine.pt", MODELS[TINY], seed=1)
        asked = " ".join(f"{{{name}}}" for name in ASKED)
        scheduler = [
            *("--executor", "cluster-generic", "--jobs", "4"),
            *("--cluster-generic-submit-cmd", f"{self.root}/submit '{asked}'"),
            *("--cluster-generic-status-cmd", f"{self.root}/status"),
            *("--max-status-checks-per-second", "5"),
            *("--groups", "embed=shards", "--group-components", f"shards={group}"),
            # One after another, with one GPU for all.
            *("--set-resource-scopes", "gpu=local", "--resources", "gpu=1"),
            *("--set-threads", "embed=2"),
        ]
        storage = ["--default-storage-provider", "fs", "--default-storage-prefix", str(self.bucket)]
        config = ["fasta=in.fasta", "model=mine.pt", f"shards={shards}", "verify={'sequences': 1}"]
        done = snakemake(
            self.folder,
            *targets,
            *scheduler,
            *storage,
            *("--shared-fs-usage", "sources"),
            *("--default-resources", "gpu=0"),
            *("--config", *config),
            start_in=self.folder,
        )
        failed = [x for x in self.root.glob("machines/*/status") if x.read_text() != "0\n"]
        printed = [path.with_name("printed").read_text() for path in failed]
        assert done.returncode == 0, "\n".join([done.stdout[-3000:], *printed])

    def asked(self, rule: str) -> list[list[str]]:
        """Return what each job of a rule has asked for."""
        lines = [line.split() for line in (self.root / "asked").read_text().splitlines()]
        return [asked for name, *asked in lines if name == rule]


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    return Site(tmp_path, monkeypatch)


def proteins(count: int) -> dict[str, str]:
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    drawn = np.random.default_rng(1).integers(len(letters), size=(count, 20))
    return {f"p{row}": "".join(letters[line]) for row, line in enumerate(drawn)}


def test_jobs_ask_for_what_their_files_in_the_storage_say(site):
    runs = [str(Paths("results/in").shard_run(shard)) for shard in (0, 1)]
    site.run(proteins(2), 2, 2, *runs)
    for run in runs:
        assert read_record(site.bucket / run)["records"] == 1
    assert site.asked("reference") == [["1", "3002", "16", "0"]]
    # Two shards in one job: one after another, so twice the time, and the rest once.
    assert site.asked("GROUP") == [["2", "3002", "32", "1"]]


@pytest.mark.exhaustive
def test_two_hundred_shards_in_groups_are_what_one_process_gives(site):
    given = proteins(200)
    site.run(given, 200, 25)
    results = packedesm.open(site.bucket / "results" / "in")
    assert results.ids == list(given)
    shutil.copy(site.bucket / "mine.pt", site.root / "mine.pt")
    alone = packedesm.embed(given, site.root / "mine.pt", device="cpu", check=False)
    np.testing.assert_array_equal(results.array(), alone.array())
    assert site.asked("GROUP") == [["2", "3002", str(25 * 16), "1"]] * 8
