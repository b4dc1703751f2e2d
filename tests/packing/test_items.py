"""The items of a job: records, and copies of them in which one residue each is masked."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from packedesm import alphabet
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.copies import MaskedCopies, masked_tokens
from packedesm.packing.dataset import Protein, SequenceDataset
from packedesm.packing.items import Items
from packedesm.packing.packer import plan_apart
from tests.typed import policy

SEQUENCES = ("MKVLAW", "ACD", "M", "WYVTSRQPNMLKIHGFEDCA")
WINDOWS = {"max_length": 8, "long_sequences": "window", "window_overlap": 3}
TRUNCATE = {"max_length": 8, "long_sequences": "truncate"}


@pytest.fixture
def items(shard):
    """Return a function that makes the items of a shard of `SEQUENCES`."""

    def make(*sequences, masked=True, unmasked=True, **config):
        paths = shard(*(sequences or SEQUENCES), **config)
        dataset = SequenceDataset(paths.shard_fasta(0), policy(**config))
        return Items(dataset, masked=masked, unmasked=unmasked)

    return make


def test_there_is_a_copy_for_each_residue_behind_the_records(items):
    made = items()
    assert len(made) == len(SEQUENCES) + sum(map(len, SEQUENCES))
    found = [made[item] for item in range(made.records, len(made))]
    assert [protein.row for protein in found] == list(range(made.records, len(made)))
    expected = [(text, place) for text in SEQUENCES for place in range(len(text))]
    assert [(protein.sequence.decode(), protein.masked) for protein in found] == expected
    assert made.tokens.tolist() == [len(made[item].sequence) + 2 for item in range(len(made))]
    assert masked_tokens(policy(), np.array([len(text) for text in SEQUENCES])) == sum(
        made.tokens[made.records :]
    )
    records = made.copies.records(np.arange(len(made) - made.records))
    assert records.tolist() == [place for place, text in enumerate(SEQUENCES) for _ in text]


def test_a_truncated_record_has_copies_of_what_is_embedded(items):
    made = items(**TRUNCATE)
    found = [made[item] for item in range(made.records + 10, len(made))]
    assert [protein.sequence for protein in found] == [b"WYVTSRQP"] * 8
    assert [protein.masked for protein in found] == list(range(8))
    assert made.tokens[-1] == 10


def test_a_residue_is_masked_in_the_window_in_which_it_stands_furthest_from_the_ends(items):
    made = items("MK", SEQUENCES[3], **WINDOWS)
    windows = policy(**WINDOWS).windows(20)
    assert windows == [(0, 8), (4, 12), (8, 16), (12, 20)]
    assert len(made) == 2 + 2 + 20
    for residue in range(20):
        copy = made.copies[2 + residue]
        depth = {
            window: min(residue - window[0], window[1] - 1 - residue)
            for window in windows
            if window[0] <= residue < window[1]
        }
        deepest = [window for window in windows if depth.get(window) == max(depth.values())]
        assert copy == (1, deepest[0], residue)
        protein = made[2 + 2 + residue]
        assert protein.sequence.decode() == SEQUENCES[3][slice(*copy.window)]
        assert protein.sequence[protein.masked] == ord(SEQUENCES[3][residue])
    assert [made.copies[2 + n].window[0] for n in range(8)] == [0, 0, 0, 0, 0, 0, 4, 4]
    assert set(made.tokens[-20:].tolist()) == {10}


def test_of_two_windows_in_which_it_stands_as_deep_a_residue_is_masked_in_the_earlier(items):
    made = items(SEQUENCES[3][:13], **WINDOWS)
    assert policy(**WINDOWS).windows(13) == [(0, 8), (5, 13)]  # the seventh is one from both ends
    assert [made.copies[n].window[0] for n in range(13)] == [0] * 7 + [5] * 6


def test_packs_hold_records_or_copies_and_every_item_once(items):
    made = items()
    packs = made.plan(40)
    kinds = [set((packs[n] >= made.records).tolist()) for n in range(len(packs))]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds == sorted(kinds, key=lambda kind: kind == {True})  # records first
    assert sorted(packs.items.tolist()) == list(range(len(made)))
    assert packs.tokens.tolist() == [int(made.tokens[packs[n]].sum()) for n in range(len(packs))]


def test_records_that_nothing_is_asked_of_are_in_no_pack(items):
    made = items(unmasked=False)
    packs = made.plan(40)
    assert sorted(packs.items.tolist()) == list(range(made.records, len(made)))
    assert packs.tokens.sum() == made.tokens[made.records :].sum()


@pytest.mark.parametrize("first", [0, 3, 8])
def test_items_of_both_kinds_are_planned_as_each_by_itself(first):
    lengths = np.array([5, 3, 9, 5, 5, 2, 7, 7])
    packs = plan_apart(lengths, 10, first)
    assert sorted(packs.items.tolist()) == list(range(8))
    for n in range(len(packs)):
        assert len(set((packs[n] < first).tolist())) == 1
        assert lengths[packs[n]].sum() == packs.tokens[n]
    assert len(plan_apart(lengths[:0], 10, 0)) == 0


def test_a_worker_gets_no_array_of_all_copies(items):
    made = items("ACDEFGHIKL" * 500, max_length=6000, long_sequences="full")
    assert made.tokens.nbytes > 20_000
    sent = pickle.dumps(made)
    assert len(sent) < 2500
    assert pickle.loads(sent)[4000] == made[4000]


def test_a_pack_reads_each_record_once(items, monkeypatch):
    made = items()
    read = []
    one = SequenceDataset.__getitem__
    monkeypatch.setattr(
        SequenceDataset, "__getitem__", lambda self, item: read.append(item) or one(self, item)
    )
    made.__getitems__(range(made.records, len(made)))
    assert read == [0, 1, 2, 3]


def test_a_masked_pack_has_one_mask_for_each_copy_and_knows_what_stood_there():
    copies = [Protein(7, b"MKV", [(0, 3)], masked=1), Protein(9, b"ACDW", [(0, 4)], masked=3)]
    plain = VarlenCollator()([Protein(7, b"MKV", [(0, 3)]), Protein(9, b"ACDW", [(0, 4)])])
    batch = VarlenCollator()(copies)
    assert batch.masked_tokens.tolist() == [2, 9]
    assert bytes(alphabet.RESIDUES[token - 4] for token in batch.masked_residues) == b"KW"
    assert batch.input_ids[batch.masked_tokens].tolist() == [alphabet.MASK] * 2
    others = torch.ones(len(batch.input_ids), dtype=torch.bool)
    others[batch.masked_tokens] = False
    assert torch.equal(batch.input_ids[others], plain.input_ids[others])
    assert torch.equal(batch.cu_seqlens, plain.cu_seqlens)
    assert (batch.masked, plain.masked) == (True, False)
    assert batch.residues.tolist() == batch.record_residues.tolist() == [1, 1]
    assert len(plain.masked_tokens) == len(plain.masked_residues) == 0
    moved = batch.to(torch.device("meta"))
    assert moved.masked
    assert len(moved.masked_tokens) == 2


def test_records_and_copies_do_not_share_a_pack():
    with pytest.raises(ValueError, match="not both"):
        VarlenCollator()([Protein(0, b"MK", [(0, 2)]), Protein(1, b"MK", [(0, 2)], masked=0)])


def test_ten_million_copies_are_planned_in_bounded_memory():
    lengths = np.random.default_rng(1).integers(30, 1000, 20_000)
    tracemalloc.start()
    copies = MaskedCopies(policy(), lengths)
    tokens = copies.tokens()
    packs = plan_apart(tokens, 16_384, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(copies) == packs.offsets[-1] == lengths.sum() > 10_000_000
    assert packs.fill > 0.9
    assert peak < 450e6
