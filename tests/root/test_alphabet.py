import esm.data
import numpy as np
import pytest

from packedesm import alphabet


@pytest.fixture(scope="module")
def fair_esm():
    return esm.data.Alphabet.from_architecture("ESM-1b")


def test_every_byte_has_the_token_that_fair_esm_gives_its_letter(fair_esm):
    for byte in range(256):
        expected = fair_esm.tok_to_idx.get(chr(byte), 255)
        assert alphabet.TOKEN_TABLE[byte] == expected, chr(byte)


def test_special_tokens_are_fair_esms(fair_esm):
    assert fair_esm.cls_idx == alphabet.CLS
    assert fair_esm.padding_idx == alphabet.PAD
    assert fair_esm.eos_idx == alphabet.EOS
    assert fair_esm.unk_idx == alphabet.UNK
    assert fair_esm.mask_idx == alphabet.MASK


def test_encoding_equals_fair_esms_tokenizer(fair_esm):
    rng = np.random.default_rng(3)
    sequence = bytes(rng.choice(list(alphabet.RESIDUES), 500).tolist())
    encoded = alphabet.encode(sequence)
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == fair_esm.encode(sequence.decode())


def test_encoding_nothing_gives_nothing():
    assert alphabet.encode(b"").shape == (0,)


@pytest.mark.parametrize("letter", [b"J", b"*", b"a", b"1", b" ", b"\x00", b"\xff", b"<"])
def test_a_byte_without_a_token_is_refused_with_its_position(letter):
    with pytest.raises(ValueError, match="position 3 "):
        alphabet.encode(b"MK" + letter + b"L" + letter)


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        alphabet.TOKEN_TABLE[0] = 1
