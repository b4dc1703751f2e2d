"""The checkpoint that ships with the package: complete, small, read alike by us and fair-esm."""

import esm
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from packedesm.alphabet import MASK, encode
from packedesm.esm2.checkpoints import load_state, prepare
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import DEMO, MODELS, locate
from packedesm.esm2.tensor_files import load_archive
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs
from packedesm.reference.model import Reference
from packedesm.sequences.fasta import read_records

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT32_RESIDUE = 5e-6  # relative L2 of every residue's vector
LIMIT = 1022
TOKEN_BUDGET = 8192


@pytest.fixture(scope="module")
def encoder():
    geometry, state = load_state(locate(DEMO))
    return PackedESM2.from_fair_esm(state, geometry)


@pytest.fixture(scope="module")
def head():
    return LanguageModelHead.from_fair_esm(load_archive(locate(DEMO))["model"])


@pytest.fixture(scope="module")
def sequences(uniprot_500):
    return [record.sequence[:LIMIT] for record in read_records(uniprot_500)]


def packs(sequences):
    """Yield packs of whole proteins, each with the indices of its sequences."""
    plan = plan_packs(np.array([len(sequence) + 2 for sequence in sequences]), TOKEN_BUDGET)
    for items in (plan[pack] for pack in range(len(plan))):
        proteins = [Protein(int(i), sequences[i], [(0, len(sequences[i]))]) for i in items]
        yield items, VarlenCollator()(proteins)


def distances(encoder, sequences, reference):
    """Yield item and relative L2 distance of its residues' vectors from the reference's."""
    for items, batch in packs(sequences):
        hidden = encoder.forward_packed(**batch.inputs)
        for item, part in zip(items, hidden.double().split(list(batch.lengths)), strict=True):
            expected = reference(sequences[item]).astype(np.float64)
            difference = np.linalg.norm(part[1:-1].numpy() - expected, axis=1)
            yield item, difference / np.linalg.norm(expected, axis=1)


def fair_esm_in_float64(monkeypatch):
    """Return a function like `Reference.residues`, exact for our purposes."""
    monkeypatch.setattr(
        esm.multihead_attention,
        "utils_softmax",  # casts to float32
        lambda x, dim, onnx_trace=False: x.softmax(dim),
    )
    reference = Reference(locate(DEMO))
    reference._model.double()
    return reference.residues


def test_it_is_found_in_the_package_whatever_the_folder_of_checkpoints(tmp_path):
    import packedesm

    assert locate(DEMO, tmp_path) == locate(DEMO)
    assert locate(DEMO).is_relative_to(packedesm.__path__[0])


def test_it_is_at_most_6_megabytes_of_float16(encoder):
    assert locate(DEMO).stat().st_size <= 6_000_000
    _, state = load_state(locate(DEMO))
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert "layers.0.self_attn.rot_emb.inv_freq" in state  # as in the published files
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_its_record_says_what_it_is(tmp_path):
    record = prepare(DEMO, tmp_path / "checkpoints")
    assert record.geometry == MODELS[DEMO]
    assert record.demo is True
    assert record.untrained is False


def test_it_predicts_hidden_residues_better_than_their_frequencies(encoder, head, sequences):
    chosen = [sequence for sequence in sequences if len(sequence) < 400][:40]
    # Counted on the very proteins that are asked for, which favours the counts.
    counts = torch.bincount(torch.from_numpy(encode(b"".join(chosen))).long(), minlength=33)
    unigram = (counts / counts.sum()).log()
    generator = torch.Generator().manual_seed(1)
    losses = {"model": [], "unigram": []}
    for _, batch in packs(chosen):
        drawn = torch.rand(len(batch.residue_tokens), generator=generator) < 0.15
        places = batch.residue_tokens[drawn].long()
        answers = batch.input_ids[places].long()
        hidden = encoder.forward_packed(
            **{**batch.inputs, "input_ids": batch.input_ids.index_fill(0, places, MASK)}
        )
        logits = head(hidden[places], encoder.embed_tokens.weight)
        losses["model"].append(F.cross_entropy(logits, answers, reduction="none"))
        losses["unigram"].append(-unigram[answers])
    model, unigram = (torch.cat(losses[name]) for name in ("model", "unigram"))
    assert len(model) > 1000
    assert model.mean() < unigram.mean()


def test_its_head_gives_the_logits_of_fair_esm(encoder, head):
    with pytest.warns(UserWarning, match="Regression weights"):
        reference, alphabet = esm.pretrained.load_model_and_alphabet_core(
            "esm2", load_archive(locate(DEMO))
        )
    tokens = alphabet.get_batch_converter()([("", "MK<mask>AYIAKQRMKT")])[2]
    with torch.inference_mode():
        expected = reference.eval()(tokens)["logits"][0]
    length = tokens.shape[1]
    hidden = encoder.forward_packed(
        tokens[0], torch.arange(length), torch.tensor([0, length], dtype=torch.int32), length
    )
    found = head(hidden, encoder.embed_tokens.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fair_esm_gives_the_same_vectors_for_forty_example_records(encoder, sequences):
    by_length = sorted(sequences, key=len)
    forty = [by_length[round(i)] for i in np.linspace(0, len(by_length) - 1, 40)]
    for _, distance in distances(encoder, forty, Reference(locate(DEMO)).residues):
        assert distance.max() <= FLOAT32_RESIDUE


@pytest.mark.slow
@pytest.mark.exhaustive
def test_fair_esm_gives_the_same_vectors_for_every_example_record(encoder, sequences, monkeypatch):
    found = dict(distances(encoder, sequences, Reference(locate(DEMO)).residues))
    over = [sequences[item] for item, x in found.items() if x.max() > FLOAT32_RESIDUE]
    # At one residue of 205,000 fair-esm's own float32 is 6e-6 from its float64, ours 3e-7: there
    # the question who is right is put to float64.
    assert sum((x > FLOAT32_RESIDUE).sum() for x in found.values()) <= 2
    for _, distance in distances(encoder, over, fair_esm_in_float64(monkeypatch)) if over else ():
        assert distance.max() <= FLOAT32_RESIDUE
