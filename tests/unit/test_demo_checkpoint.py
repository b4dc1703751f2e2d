"""The checkpoint that ships with the package: complete, small, read alike by us and fair-esm."""

import numpy as np
import pytest
import torch
from packs import packs
from perplexity import Counts, hidden_residue_losses

from packedesm.checkpoints import load_archive, load_state, prepare
from packedesm.fasta import read_records
from packedesm.lm_head import LanguageModelHead
from packedesm.model import PackedESM2
from packedesm.models import DEMO, MODELS, locate
from packedesm.reference import Reference

FLOAT32_RESIDUE = 5e-6  # relative L2 of every residue's vector
LIMIT = 1022


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder():
    geometry, state = load_state(locate(DEMO))
    return PackedESM2.from_fair_esm(state, geometry)


@pytest.fixture(scope="module")
def sequences(uniprot_500):
    return [record.sequence[:LIMIT] for record in read_records(uniprot_500)]


def worst_residue(encoder, sequences):
    """Return the largest relative L2 distance of a residue's vector from fair-esm's."""
    reference = Reference(locate(DEMO))
    worst = 0.0
    for items, batch in packs(sequences):
        hidden = encoder.forward_packed(
            batch.input_ids,
            batch.positions,
            batch.cu_seqlens,
            batch.max_seqlen,
            lengths=batch.lengths,
        )
        for item, part in zip(items, hidden.double().split(list(batch.lengths)), strict=True):
            expected = reference.residues(sequences[item]).astype(np.float64)
            distance = np.linalg.norm(part[1:-1].numpy() - expected, axis=1)
            worst = max(worst, (distance / np.linalg.norm(expected, axis=1)).max())
    return worst


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
    record = prepare(DEMO, tmp_path / "checkpoints", tmp_path / "checkpoint.json")
    size = MODELS[DEMO]
    assert (record["layers"], record["width"], record["heads"]) == (
        size.layers,
        size.width,
        size.heads,
    )
    assert record["for_trial"] is True
    assert record["meaningless"] is False


def test_it_predicts_hidden_residues_better_than_their_frequencies(encoder, sequences):
    head = LanguageModelHead.from_fair_esm(load_archive(locate(DEMO))["model"])
    chosen = [sequence for sequence in sequences if len(sequence) < 400][:40]
    # Counted on the very proteins that are asked for, which favours the counts.
    losses, _ = hidden_residue_losses(encoder, head, Counts(chosen), chosen, seed=1)
    assert losses["model"].mean() < losses["unigram"].mean()


def test_fair_esm_gives_the_same_vectors_for_a_few(encoder, sequences):
    assert worst_residue(encoder, sorted(sequences, key=len)[:200:40]) <= FLOAT32_RESIDUE


@pytest.mark.slow
def test_fair_esm_gives_the_same_vectors_for_every_example_record(encoder, sequences):
    assert worst_residue(encoder, sequences) <= FLOAT32_RESIDUE
