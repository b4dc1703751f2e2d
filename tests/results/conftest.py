"""Finished results whose ids no format likes, for the tests of exports."""

import shutil
from pathlib import Path

import pytest

import packedesm
from packedesm.cli import main
from packedesm.esm2.registry import TINY
from tests.results import exported
from tests.results.more_arrays import with_arrays

S = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRV"
# Row by row; of one id there is one sequence.
RECORDS = [
    ("P1", S),
    ("P1/1-20", S[:20]),
    ("sp|P12345|ONE_HUMAN", S[1:]),
    (".", S[2:]),
    ("P1", S),
    ("P1%2F1-20", S[3:]),
    ("n\0ul", "MBZXUO" + S[:9]),
    ("tr|A0A0B4J2F0|TWO_MOUSE", S[4:]),
    ("gi|long|", S * 4),
    ("Ünïcode", S),
    ("..", S[5:]),
]
MAX_LENGTH = 100
MORE = ("mean.layer2", "residue.layer0", "logits", "log_likelihood", "masked_marginals")
MORE += ("pseudo_perplexity", "contacts")


@pytest.fixture(scope="session")
def exporting(made_once, checkpoints) -> Path:
    """The folder of a FASTA, ``in.fasta``, and of its results, ``out``, exported as ``h5``."""

    def fill(folder: Path) -> None:
        fasta = folder / "in.fasta"
        fasta.write_text("".join(f">{name} of a test\n{letters}\n" for name, letters in RECORDS))
        options = {"outputs": "mean,cls,residue", "output-dtype": "float16", "model": TINY}
        options |= {"max-length": MAX_LENGTH, "exports": "h5", "checkpoints": checkpoints}
        flags = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
        assert main(["embed", str(fasta), "-o", str(folder / "out"), *flags]) == 0

    return made_once("exporting", fill)


@pytest.fixture
def own(exporting, tmp_path) -> Path:
    """A copy of these results, for a test that changes something, without exports."""
    folder = Path(shutil.copytree(exporting / "out", tmp_path / "own"))
    shutil.rmtree(folder / "exports")
    return folder


@pytest.fixture(scope="session")
def with_more(exporting, made_once) -> packedesm.Results:
    """The same results with arrays of every kind."""

    def fill(folder: Path) -> None:
        with_arrays(exporting / "out", folder / "out", *MORE)

    return packedesm.open(made_once("with_more", fill) / "out")


@pytest.fixture(scope="session")
def short_results(made_once, checkpoints) -> Path:
    """Results of `tests.results.exported.RECORDS`, to be copied, not changed."""
    return made_once("short", lambda folder: exported.embedded(folder, checkpoints)) / "out"
