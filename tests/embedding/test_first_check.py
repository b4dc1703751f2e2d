"""The first check sees every array that an ordinary pass gives, and names what is off."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from packedesm.config import resolve
from packedesm.embedding.first_check import _by_record
from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.files import read_record
from packedesm.outputs import Array
from packedesm.paths import Paths
from packedesm.pipeline import embed_fasta
from tests.sharp import write_sharp

WHOLE = ["mean", "residue", "logits", "log_likelihood"]
ASKED = {
    "outputs": [*WHOLE, "masked_marginals", "pseudo_perplexity"],
    "layers": [0, 2, "last"],
}
SEQUENCES = ("MKVLAGHKLWXA", "MAYITWKQCDEFNLLGHIKRSMAYITWKQCDEF", "MWAGKLC", "MQ" * 30)
FIXED = {"attention": "sdpa", "token_budget": 256, "verify": {"sequences": 4}, "max_length": 40}
FIXED |= {"long_sequences": "window", "window_overlap": 16}


def embed(tmp_path) -> Paths:
    """Embed four proteins, the longest in two windows."""
    paths, fasta = Paths(tmp_path / "out"), tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{n}\n{sequence}\n" for n, sequence in enumerate(SEQUENCES)))
    model = tmp_path / "w.pt"
    if not model.exists():
        write_sharp(model, 1)
    asked = {"fasta": str(fasta), "model": str(model), **FIXED, **ASKED}
    embed_fasta(paths, resolve(asked), 1)
    return paths


@contextmanager
def changed(kind: type, change):
    """Let models or heads that are made by fair-esm's weights be others."""
    made = kind.from_fair_esm.__func__

    def changing(cls, *arguments, **named):
        change(model := made(cls, *arguments, **named))
        return model

    with mock.patch.object(kind, "from_fair_esm", classmethod(changing)):
        yield


def test_layers_and_what_the_head_says_are_compared_and_verified(tmp_path):
    paths = embed(tmp_path)
    check = ShardRun.read(paths.shard_run(0)).first_check
    assert check["compared"] == len(SEQUENCES) * (2 * 3 + 2)
    assert check["passed"]
    verification = read_record(paths.verification)
    whole = {
        *("mean.layer0", "mean.layer2", "mean", "residue.layer0", "residue.layer2", "residue"),
        *("logits", "log_likelihood", "masked_marginals"),
    }
    told = {(a["array"], a["against"]): a["compared"] for a in verification["arrays"]}
    # Perplexities with fair-esm's, and those of all but the one with an X with the run's own masked
    # marginals too.
    with_fair_esm = {(name, "reference"): 4 for name in whole}
    # The fourth would be more passes than such a run is worth.
    against = ("reference", "masked_marginals")
    assert told == with_fair_esm | {("pseudo_perplexity", name): 3 for name in against}
    assert verification["worst"]["relative_l2"] < 2e-6
    (left,) = verification["not_compared"]
    assert left.startswith("pseudo_perplexity of 1 protein (row 3) not compared with fair-esm")


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        (LanguageModelHead, lambda head: head.bias.data.add_(0.01), "(logits|log_likelihood) of"),
        (LanguageModelHead, lambda head: head.dense.weight.data.mul_(1.001), "log"),
        # Of the layers before it nothing is off, and of the last little.
        (PackedESM2, lambda model: model.final_norm.weight.data.mul_(1.001), "(mean|residue|log)"),
        (PackedESM2, lambda m: m.layers[1].fc2.weight.data.mul_(1.01), r"\w+(\.layer2)? of"),
    ],
)
def test_a_device_that_is_a_little_off_anywhere_is_seen(tmp_path, kind, change, named):
    with changed(kind, change), pytest.raises(Fault, match=f"the first check fails: {named}"):
        embed(tmp_path)
    assert not list((tmp_path / "out").glob("*.npy"))


def test_of_a_pack_each_record_has_its_own_lines():
    residues = np.array([2, 1, 3])
    pairs = np.arange(3 + 1 + 6)
    pack = FinishedPack(None, np.arange(3), residues, {"contacts": pairs}, np.empty(0, np.int64))
    found = _by_record(Array.named("contacts"), pack)
    assert [part.tolist() for part in found] == [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]
