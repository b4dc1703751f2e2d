import esm.data
import numpy as np
import pytest

from packedesm import tokens


@pytest.fixture(scope="module")
def alphabet():
    return esm.data.Alphabet.from_architecture("ESM-1b")


def test_every_byte_has_the_token_that_fair_esm_gives_its_letter(alphabet):
    for byte in range(256):
        expected = alphabet.tok_to_idx.get(chr(byte), 255)
        assert tokens.TOKEN_TABLE[byte] == expected, chr(byte)


def test_special_tokens_are_fair_esms(alphabet):
    assert alphabet.cls_idx == tokens.CLS
    assert alphabet.padding_idx == tokens.PAD
    assert alphabet.eos_idx == tokens.EOS
    assert alphabet.unk_idx == tokens.UNK
    assert alphabet.mask_idx == tokens.MASK


def test_encoding_equals_fair_esms_tokenizer(alphabet):
    rng = np.random.default_rng(3)
    sequence = bytes(rng.choice(list(tokens.RESIDUES), 500).tolist())
    encoded = tokens.encode(sequence)
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == alphabet.encode(sequence.decode())


def test_encoding_nothing_gives_nothing():
    assert tokens.encode(b"").shape == (0,)


@pytest.mark.parametrize("letter", [b"J", b"*", b"a", b"1", b" ", b"\x00", b"\xff", b"<"])
def test_a_byte_without_a_token_is_refused_with_its_position(letter):
    with pytest.raises(ValueError, match="position 3 "):
        tokens.encode(b"MK" + letter + b"L" + letter)


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        tokens.TOKEN_TABLE[0] = 1
