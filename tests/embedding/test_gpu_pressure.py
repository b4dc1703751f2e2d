"""Real jobs on a real GPU: as on the CPU, and while something else takes nearly all its memory."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json
from packedesm.reference.model import Reference
from packedesm.sequences.fasta import read_records
from tests.jobs import Sample

GEOMETRY = MODELS["esm2_t6_8M_UR50D"]
FLOAT32 = 5e-6  # relative L2 of a record, as promised
BFLOAT16 = 0.02  # as promised
FLOAT16 = BFLOAT16 / 8  # it keeps three bits more
BUDGET = 262_144  # tokens of a pack: in float32 more than 3 GB beside the weights
LEFT = 2 << 30  # bytes: enough to start a job, too few for such a pack
COPIES = 4  # of the example: four packs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


def jobs(root: Path, fasta: Path, **config) -> Sample:
    """Return a sample of one shard, whose jobs commit every pack."""
    root.mkdir()
    write_random_checkpoint(root / "model.pt", GEOMETRY, seed=1)
    settings = {"deduplicate": False, "dtype": "float32", "commit_packs": 1, **config}
    return Sample(root, fasta, model=str(root / "model.pt"), **settings)


def vectors(sample: Sample) -> np.ndarray:
    return np.load(sample.paths.shard_array(0, "mean"))


def assert_within(bar: float, found: np.ndarray, expected: np.ndarray) -> None:
    distances = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distances.max() <= bar


@pytest.fixture(scope="module")
def copies(uniprot_500, tmp_path_factory) -> Path:
    """The example several times over, each record by a name of its own."""
    text = gzip.decompress(uniprot_500.read_bytes()).decode()
    path = tmp_path_factory.mktemp("copies") / "copies.fasta"
    path.write_text("".join(text.replace(">", f">{copy}_") for copy in range(COPIES)))
    return path


@pytest.mark.parametrize(
    ("dtype", "bar"), [("float32", FLOAT32), ("float16", FLOAT16), ("bfloat16", BFLOAT16)]
)
def test_a_job_puts_the_vectors_of_fair_esm_into_the_right_rows(dtype, bar, uniprot_500, tmp_path):
    sample = jobs(tmp_path / "sample", uniprot_500, dtype=dtype, output_dtype="float32")
    sample.run(fork=False)
    assert read_json(sample.paths.shard_run(0))["device"]["kind"] == "cuda"
    rows = range(0, 500, 31)
    records = [*read_records(uniprot_500)]
    reference = Reference(sample.checkpoint.path)
    limit = sample.config["max_length"]
    expected = [reference.residues(records[row].sequence[:limit]).mean(0) for row in rows]
    assert_within(bar, vectors(sample)[rows], np.stack(expected))


def test_a_job_goes_on_while_another_tensor_takes_nearly_all_memory(copies, tmp_path):
    calm = jobs(tmp_path / "calm", copies, token_budget=BUDGET)
    calm.run(fork=False)
    pressed = jobs(tmp_path / "pressed", copies, token_budget=BUDGET)
    free, _total = torch.cuda.mem_get_info()
    other = torch.empty(free - LEFT, dtype=torch.uint8, device="cuda")
    process = pressed.start(fork=False)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and not pressed.commits():
            assert time.monotonic() < deadline, "the job makes no progress"
            time.sleep(0.01)
    finally:
        del other
        torch.cuda.empty_cache()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    logs = [(sample.paths.root / "job.log").read_text() for sample in (calm, pressed)]
    assert ["out of memory" in log for log in logs] == [False, True], "there was no pressure"
    assert_within(FLOAT32, vectors(pressed), vectors(calm))
