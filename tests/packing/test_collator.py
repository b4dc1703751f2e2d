import esm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein

ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")


def protein(row: int, sequence: str, spans=None) -> Protein:
    return Protein(row, sequence.encode(), spans or [(0, len(sequence))])


def test_a_small_pack_is_laid_out_back_to_back():
    batch = VarlenCollator()([protein(7, "MK"), protein(3, "A")])
    m, k, a = (ALPHABET.get_idx(letter) for letter in "MKA")
    assert batch.input_ids.tolist() == [0, m, k, 2, 0, a, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 4
    assert batch.rows.tolist() == [7, 3]
    assert batch.residue_tokens.tolist() == [1, 2, 5]
    assert batch.residue_index is None
    assert batch.lengths == (4, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("LAGVSERTIDPKQNFYMHWCXBUZO", min_size=1, max_size=50), min_size=1, max_size=9)
)
def test_tokens_are_those_of_fair_esm(sequences):
    batch = VarlenCollator()([protein(row, text) for row, text in enumerate(sequences)])
    convert = ALPHABET.get_batch_converter()
    for text, start, end in zip(
        sequences, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True
    ):
        expected = convert([("", text)])[2][0]
        assert torch.equal(batch.input_ids[start:end], expected)
        assert batch.positions[start:end].tolist() == list(range(len(text) + 2))


def test_windows_of_one_record_are_sequences_that_share_residues():
    batch = VarlenCollator()([protein(0, "ACD"), protein(1, "MKVLW", [(0, 3), (2, 5)])])
    assert batch.lengths == (5, 5, 5)
    assert batch.record_windows.tolist() == [1, 2]
    assert batch.residues.tolist() == [3, 5]
    assert batch.residue_index.tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    letters = np.array([ALPHABET.get_tok(i) for i in batch.input_ids[batch.residue_tokens]])
    assert "".join(letters) == "ACDMKVVLW"


def test_moving_a_batch_keeps_every_field():
    batch = VarlenCollator()([protein(0, "ACD"), protein(1, "MKVLW", [(0, 3), (2, 5)])])
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.residue_index.device.type == "meta"
    assert moved.rows is batch.rows
    assert moved.lengths == batch.lengths


@pytest.mark.parametrize("spans", [None, [(0, 3), (2, 5)]], ids=["whole", "windows"])
def test_a_pack_is_one_buffer_that_holds_aligned_tensors_and_no_more(spans):
    batch = VarlenCollator()([protein(0, "ACD"), protein(1, "MKVLW", spans)])
    assert [name for name, x in vars(batch).items() if isinstance(x, torch.Tensor)] == ["numbers"]
    names = ("input_ids", "positions", "cu_seqlens", "residue_tokens", "residue_index")
    names += ("record_residues", "record_windows")
    parts = [part for name in names if (part := getattr(batch, name)) is not None]
    assert len(parts) == 6 + bool(spans)
    places = [part.storage_offset() for part in parts]
    assert all(place % 4 == 0 for place in places)  # 16 bytes
    for place, part, following in zip(
        places, parts, [*places[1:], len(batch.numbers)], strict=True
    ):
        assert part.dtype == torch.int32
        assert part.untyped_storage().data_ptr() == batch.numbers.untyped_storage().data_ptr()
        assert 0 <= following - place - len(part) < 4
