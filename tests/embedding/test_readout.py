"""What one pass gives of every layer and of the language head is what fair-esm gives."""

import gzip
from types import SimpleNamespace

import esm
import numpy as np
import pytest
import torch

from packedesm.embedding import readout
from packedesm.embedding.readout import Readout
from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.esm2.tensor_files import load_archive
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from tests.typed import embed_plan, policy

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = 5e-6  # relative L2, float32
ARRAYS = (
    *("mean", "mean.layer0", "cls.layer3", "max.layer5", "residue", "residue.layer2"),
    *("logits", "log_likelihood"),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model, fair-esm's with the same weights, and its alphabet."""
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    write_random_checkpoint(path, MODELS["esm2_t6_8M_UR50D"], seed=3)
    content = load_archive(path)
    oracle, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2_", content)
    geometry, state = load_state(path)
    model = PackedESM2.from_fair_esm(state, geometry)
    model.language_head = LanguageModelHead.from_fair_esm(content["model"])
    return SimpleNamespace(model=model, oracle=oracle.eval(), alphabet=alphabet)


@pytest.fixture(scope="module")
def sequences(uniprot_500):
    text = gzip.decompress(uniprot_500.read_bytes()).decode()
    records = text.removeprefix(">").split("\n>")
    found = sorted((r.partition("\n")[2].replace("\n", "") for r in records), key=len)
    return [*found[:150:10], "M", "XBUZO"]


def pack(sequences, spans=None):
    proteins = [
        Protein(row, sequence.encode(), spans or [(0, len(sequence))])
        for row, sequence in enumerate(sequences)
    ]
    return VarlenCollator()(proteins)


@torch.inference_mode()
def said(pair, sequence):
    """Return what fair-esm gives of one sequence by array name, float64, residues only."""
    _, _, tokens = pair.alphabet.get_batch_converter()([("", sequence)])
    found = pair.oracle(tokens, repr_layers=range(7))
    layers = {layer: x[0].double() for layer, x in found["representations"].items()}
    logits = found["logits"][0, 1:-1].double()
    own = logits.log_softmax(1).gather(1, tokens[0, 1:-1, None]).squeeze(1)
    return {
        "mean": layers[6][1:-1].mean(0),
        "mean.layer0": layers[0][1:-1].mean(0),
        "cls.layer3": layers[3][0],
        "max.layer5": layers[5][1:-1].max(0).values,
        "residue": layers[6][1:-1],
        "residue.layer2": layers[2][1:-1],
        "logits": logits,
        "log_likelihood": own,
    }


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@torch.inference_mode()
def of(pair, batch, **plan):
    return Readout(pair.model, embed_plan(arrays=ARRAYS, **plan)).of(batch)


def test_every_layer_and_what_the_head_says_equal_fair_esm(pair, sequences):
    found = of(pair, pack(sequences))
    assert tuple(found) == ARRAYS
    ends = np.cumsum([len(sequence) for sequence in sequences])
    for row, (sequence, end) in enumerate(zip(sequences, ends, strict=True)):
        for name, expected in said(pair, sequence).items():
            whole = found[name].shape[0] == ends[-1]
            ours = found[name][end - len(sequence) : end] if whole else found[name][row]
            assert ours.shape == expected.shape
            assert distance(ours, expected) <= BAR, (name, row)


def test_logits_in_parts_are_those_of_one_product(pair, sequences, monkeypatch):
    whole = of(pair, pack(sequences))
    monkeypatch.setattr(readout, "_AT_ONCE", 100)
    parts = of(pair, pack(sequences))
    for name in ("logits", "log_likelihood"):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-5)
        assert parts[name].dtype == torch.float32


def test_where_windows_overlap_logits_and_log_probabilities_are_averaged(pair):
    sequence = "MKVLAAGIVGLYRDEQNSTPWHFC"
    windows = policy(max_length=10, long_sequences="window", window_overlap=4)
    spans = windows.windows(len(sequence))
    assert len(spans) > 2
    found = of(pair, pack([sequence], spans))
    for name in ("logits", "log_likelihood", "residue.layer2"):
        of_windows = [said(pair, sequence[start:stop])[name] for start, stop in spans]
        expected = []
        for place in range(len(sequence)):
            covering = [
                lines[place - start]
                for lines, (start, stop) in zip(of_windows, spans, strict=True)
                if start <= place < stop
            ]
            expected.append(torch.stack(covering).mean(0))
        assert distance(found[name], torch.stack(expected)) <= BAR


def test_files_of_half_precision_keep_log_likelihoods_in_float32(pair, sequences):
    found = of(pair, pack(sequences), output_dtype="float16")
    assert found["logits"].dtype == found["mean.layer0"].dtype == torch.float16
    assert found["log_likelihood"].dtype == torch.float32


def test_a_model_without_the_head_is_refused(pair):
    bare = PackedESM2(pair.model.geometry)
    with pytest.raises(UserError, match="no language head"):
        Readout(bare, embed_plan(arrays=("logits",)))
