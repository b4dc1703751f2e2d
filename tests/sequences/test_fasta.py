"""What a FASTA file says, record by record, and what is refused."""

import gzip
import os
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from packedesm.errors import UserError
from packedesm.sequences.fasta import read_blocks, read_records
from tests.bgzip import END, bgzip


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, name="in.fasta"):
        path = tmp_path / name
        path.write_bytes(content)
        return [tuple(record) for record in read_records(path)]

    return read


def refusal(read, content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(content)
    message = str(caught.value)
    assert "\n" not in message
    assert "in.fasta" in message
    return message


def textbook(content: str):
    """Well-formed FASTA, line by line."""
    records = []
    for line in content.splitlines():
        if line.startswith(">"):
            name, _, description = line[1:].partition(" ")
            records.append([name, description, ""])
        else:
            records[-1][2] += line
    return [(name, text, sequence.encode(), ()) for name, text, sequence in records]


def test_real_records_are_read_as_a_line_by_line_reader_reads_them(uniprot_500):
    expected = textbook(gzip.decompress(uniprot_500.read_bytes()).decode())
    records = [tuple(record) for record in read_records(uniprot_500)]
    assert len(records) == 500
    assert records == expected


def test_a_record_names_its_parts(read, tmp_path):
    read(b">sp|P1|A_B  Some protein\tOS=X \nMKV\nLL\n")
    (record,) = read_records(tmp_path / "in.fasta")
    assert record.id == "sp|P1|A_B"
    assert record.description == " Some protein\tOS=X "
    assert record.sequence == b"MKVLL"
    assert record.flags == ()


AB = [("a", "x", b"MKVL", ()), ("b", "", b"ACD", ())]


@pytest.mark.parametrize(
    "content",
    [
        b">a x\nMKVL\n>b\nACD\n",
        b">a x\nMKVL\n>b\nACD",
        b">a x\nMK\nVL\n>b\nA\nC\nD\n",
        b">a x\r\nMK\r\nVL\r\n>b\r\nACD\r\n",
        b">a x\r\nMK\r\nVL\r\n>b\r\nACD",
        b">a x\r\nMK\r\nVL\r\n>b\r\nACD\r",
        b">a x\r\r\nMK\r\r\nVL\r\r\n>b\r\r\nACD\r\r\n",
        b">a x\nMK\r\nVL\n>b\r\nACD\n",
        b">a x\rMK\rVL\r>b\rACD\r",
        b">a x\rMK\r\rVL\r\r>b\rACD",
        b"\n\n>a x\n\nMK\n\n\nVL\n\n>b\n\nACD\n\n\n",
        b" \n\t\n>a x\n \nMK\nVL\n\t \n>b\nACD\n  ",
        b"\r\n\r\n>a x\r\nMKVL\r\n\r\n>b\r\nACD\r\n",
        b"\xef\xbb\xbf>a x\nMKVL\n>b\nACD\n",
        b"\xef\xbb\xbf\r\n>a x\r\nMKVL\r\n>b\r\nACD\r\n",
        b">a\tx\n MKVL\t\n>b\nACD  \n",
    ],
)
@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 7, 11, 1 << 20])
def test_harmless_oddities_change_nothing(tmp_path, content, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    blocks = read_blocks(path, block_size)
    assert [tuple(record) for block in blocks for record in block] == AB


def test_only_the_first_space_or_tab_separates_the_description(read):
    records = read(b">a\tx y\nM\n>b x\ty\nM\n>c>d >e\nM\n>f \nM\n>g|h/i\xc2\xa0j k\nM\n")
    assert [record[:2] for record in records] == [
        ("a", "x y"),
        ("b", "x\ty"),
        ("c>d", ">e"),
        ("f", ""),
        ("g|h/i\u00a0j", "k"),
    ]


def test_headers_that_are_not_utf8_are_kept_byte_for_byte_and_flagged(read):
    (first, second) = read(b">caf\xe9 \xff\x80x\nMK\n>caf\xc3\xa9\nMK\n")
    assert first[0].encode("latin-1") == b"caf\xe9"
    assert first[1].encode("latin-1") == b"\xff\x80x"
    assert first[3] == ("header_latin1",)
    assert second == ("café", "", b"MK", ())


@pytest.mark.parametrize(
    ("written", "sequence", "flags"),
    [
        (b"mkvl", b"MKVL", ("upper_cased",)),
        (b"MKvL", b"MKVL", ("upper_cased",)),
        (b"MKVL*", b"MKVL", ("stop_removed",)),
        (b"MKVL\n*", b"MKVL", ("stop_removed",)),
        (b"MK*VL", b"MKXVL", ("stop_replaced",)),
        (b"MKVL**", b"MKVLX", ("stop_removed", "stop_replaced")),
        (b"*MKVL", b"XMKVL", ("stop_replaced",)),
        (b"MJK", b"MXK", ("j_replaced",)),
        (b"mj*k*", b"MXXK", ("upper_cased", "stop_removed", "stop_replaced", "j_replaced")),
        (b"*", b"", ("stop_removed",)),
        (b"", b"", ()),
        (b"ACDEFGHIKLMNPQRSTVWYXBUZO", b"ACDEFGHIKLMNPQRSTVWYXBUZO", ()),
    ],
)
def test_what_is_changed_in_a_sequence_is_flagged(read, written, sequence, flags):
    before, record, after = read(b">a\nMK\n>b\n" + written + b"\n>c\nAC\n")
    assert record == ("b", "", sequence, flags)
    assert before == ("a", "", b"MK", ())
    assert after == ("c", "", b"AC", ())


@pytest.mark.parametrize(
    ("letter", "shown", "advice"),
    [
        (b"-", "'-'", "gap"),
        (b".", "'.'", "gap"),
        (b"7", "'7'", "number"),
        (b" ", "' '", "blank"),
        (b"\t", r"'\t'", "blank"),
        (b"\x00", r"'\x00'", "write X"),
        (b"\x0b", r"'\x0b'", "write X"),
        (b"?", "'?'", "write X"),
        (b">", "'>'", "header"),
        (b"\xc3\xa9", "'é'", "letter"),
        (b"\xc3(", "0xc3", "letter"),
    ],
)
def test_a_character_that_is_no_residue_is_refused_with_its_place(read, letter, shown, advice):
    message = refusal(read, b"\n>a\nMK\nAC\n>bad one\nMKj\n *A" + letter + b"C\n>c\n1\n")
    assert "record 2 'bad'" in message
    assert "line 5" in message
    assert f"character {shown}" in message or f"byte {shown}" in message
    assert "residue 6 " in message
    assert advice in message


@pytest.mark.parametrize("block_size", [1, 4, 9, 1 << 20])
def test_the_place_of_a_fault_does_not_depend_on_blocks(tmp_path, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(b"\r\n \r\n>a\r\nMK\r\n\r\n>b\r\nACD\r\nKL\r\n>c\r\nMK\r\nA1\r\n")
    with pytest.raises(UserError, match=r"record 3 'c' \(line 9\): character '1' at residue 4 "):
        list(read_blocks(path, block_size))


@pytest.mark.parametrize(
    "content",
    [b">a\nMK\n>\nAC\n>c\nMK\n", b">a\nMK\n> b\nAC\n", b">a\nMK\n>\n>b\nM\n", b">a\nMK\n>"],
)
def test_a_header_without_an_id_is_refused(read, content):
    message = refusal(read, content)
    assert "record 2 ''" in message
    assert "line 3" in message
    assert "no id" in message


@pytest.mark.parametrize(
    "content",
    [
        b">a desc\rMKV\nACD\nMK\n",  # CR ends the first line, so LF ends none
        b">a\nMK\n>b x\rMORE\nACD\n",
        b">a\nMK\n>b\nAC\rDE\n",
        b">a\rMK\r>b\rAC\r\nDE\n",
    ],
)
@pytest.mark.parametrize("block_size", [1, 3, 1 << 20])
def test_mixed_line_ends_are_refused_rather_than_guessed(tmp_path, content, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    with pytest.raises(UserError, match="line ends are mixed"):
        list(read_blocks(path, block_size))


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \t\r\n\n ", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(read, content):
    assert "empty" in refusal(read, content)
    assert "empty" in refusal(read, gzip.compress(content))


AFTER_BLANK = [b" >a\nMK\n", b"\t>a\nMK\n>b\nMA\n>c\nMM\n", b"\n \n >a\nMK\n>b\nMA\n>c\nMM\n"]


@pytest.mark.parametrize("block_size", [1, 4, 1000])
@pytest.mark.parametrize("content", AFTER_BLANK)
def test_a_first_record_after_a_blank_is_refused_and_not_left_out(tmp_path, content, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"line [13] begins with '( |.t)>a?'"):
        list(read_blocks(path, block_size))


@pytest.mark.parametrize("content", [b"MKVL\n", b"\n\nid,sequence\n>a\nMK\n", b"; x\n>a\nMK\n"])
def test_text_before_the_first_header_is_not_fasta(read, content):
    message = refusal(read, content)
    assert "not FASTA" in message
    assert content.strip().split(b"\n")[0].decode() in message


CONTENT = b"".join(b">r%d some protein\nMKVLAC%s\n" % (i, b"ACDW" * (i % 9)) for i in range(100))


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda content: gzip.compress(content[:1000]) + gzip.compress(content[1000:]),
        lambda content: gzip.compress(content) + bytes(512),
        bgzip,
    ],
    ids=["gzip", "two members", "padded with zeros", "bgzip"],
)
@pytest.mark.parametrize("name", ["in.fasta.gz", "in.fasta"])
def test_gzip_is_known_by_its_bytes_not_its_name(read, compress, name):
    assert read(compress(CONTENT), name) == textbook(CONTENT.decode())


def test_a_pipe_that_brings_byte_after_byte_is_read_as_a_file_is(tmp_path):
    path, data = tmp_path / "pipe", gzip.compress(b">a\nMK\n")
    os.mkfifo(path)

    def write():
        with path.open("wb", buffering=0) as pipe:
            for byte in data:
                pipe.write(bytes([byte]))
                time.sleep(0.005)  # so that each is read alone

    writer = threading.Thread(target=write)
    writer.start()
    assert [tuple(record) for record in read_records(path)] == [("a", "", b"MK", ())]
    writer.join()


def test_truncated_gzip_is_refused(read):
    data = gzip.compress(CONTENT)
    for size in (5, 15, len(data) // 2, len(data) - 1):
        assert "gzip" in refusal(read, data[:size])


def test_corrupt_gzip_is_refused(read):
    data = bytearray(gzip.compress(CONTENT))
    data[-6] ^= 0xFF  # in the checksum
    assert "corrupt" in refusal(read, bytes(data))
    data = bytearray(gzip.compress(CONTENT))
    data[len(data) // 2] ^= 0xFF
    refusal(read, bytes(data))


def test_bgzip_cut_between_two_blocks_is_refused(read):
    data = bgzip(CONTENT)
    cut = data[: -len(END)]
    assert gzip.decompress(cut) == CONTENT  # no fault for gzip
    assert "truncated bgzip" in refusal(read, cut)


def test_a_bgzip_header_on_less_than_an_end_marker_is_refused(read):
    body = zlib.compress(b"", 1, wbits=-15) + bytes(8)
    data = b"\x1f\x8b\x08\x04" + bytes(6) + b"\x02\x00BC" + body
    assert len(data) < len(END)
    assert gzip.decompress(data) == b""
    assert "bgzip" in refusal(read, data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [b">a\nMK" + b"\r" * 3_000_000 + b"A\n", b"\r" * 3_000_000, b">a\nM\r" + b"\r" * 3_000_000],
)
def test_long_runs_of_carriage_returns_take_no_longer_than_other_bytes(tmp_path, content):
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    with suppress(UserError):
        list(read_blocks(path))


def test_a_name_that_no_file_can_have_is_refused():
    for path in ("a\0b", "x" * 10_000):
        with pytest.raises(UserError, match="cannot be read") as caught:
            list(read_records(Path(path)))
        assert len(str(caught.value)) < 300


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.fasta", tmp_path):
        with pytest.raises(UserError, match="cannot be read") as caught:
            list(read_records(path))
        assert str(path) in str(caught.value)


def test_control_characters_and_long_ids_do_not_spoil_the_message(read):
    message = refusal(read, b">a\x1b[31m\x07" + b"x" * 500 + b"\nMK1\n")
    assert message.isprintable()
    assert len(message.partition(": ")[2]) < 250  # after the path
