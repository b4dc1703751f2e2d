"""A FASTA file is read block by block: where blocks end changes nothing, and memory is bounded."""

import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packedesm.errors import UserError
from packedesm.sequences.fasta import read_blocks, read_records


def test_records_longer_than_a_block_are_whole(tmp_path):
    path = tmp_path / "in.fasta"
    sequence = b"ACDEFGHIKLMNPQRSTVWY" * 200
    path.write_bytes(b">a\n" + sequence + b"\n>b\nMK\n>c\n" + sequence)
    records = [record for block in read_blocks(path, 64) for record in block]
    assert [(record.id, record.sequence) for record in records] == [
        ("a", sequence),
        ("b", b"MK"),
        ("c", sequence),
    ]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "in.fasta"
    record = b">r some protein of some organism\n" + b"ACDEFGHIKLMNPQRSTVWY\n" * 20
    path.write_bytes(record * 40_000)
    assert path.stat().st_size > 18_000_000
    tracemalloc.start()
    try:
        count = sum(len(block) for block in read_blocks(path, 1 << 16))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert peak < 2_000_000


names = st.text(
    st.characters(codec="utf-8", exclude_characters=" \t\r\n\x00"), min_size=1, max_size=12
)
descriptions = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)
sequences = st.binary(max_size=60).map(
    lambda data: bytes(b"ACDEFGHIKLMNPQRSTVWYXBUZO"[byte % 25] for byte in data)
)


@settings(max_examples=300, deadline=None)
@given(
    records=st.lists(st.tuples(names, descriptions, sequences), min_size=1, max_size=8),
    width=st.integers(1, 70),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    final=st.booleans(),
    blank=st.booleans(),
    block_size=st.integers(1, 200),
    compress=st.booleans(),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory, records, width, end, final, blank, block_size, compress
):
    lines = []
    for name, description, sequence in records:
        lines.append(b">" + name.encode() + b" " + description.encode())
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
        lines += [b""] * blank
    content = end.join(lines) + end * final
    path = tmp_path_factory.mktemp("round") / "in.fasta"
    path.write_bytes(gzip.compress(content) if compress else content)
    found = [record for block in read_blocks(path, block_size) for record in block]
    assert [tuple(record) for record in found] == [(*record, ()) for record in records]


@pytest.mark.parametrize("seed", range(20))
def test_block_size_never_changes_the_records_of_a_messy_file(tmp_path, seed):
    rng = np.random.default_rng(seed)
    parts = [b"\n", b"\r\n", b" \n", b"mk*\n", b"AJC\n", b"MKV\r\n", b"  AC\t\n", b"*\n"]
    content = b"".join(
        b">r%d \xe9 x\n" % i + b"".join(rng.choice(parts, rng.integers(0, 5))) for i in range(30)
    )
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    whole = list(read_records(path))
    assert len(whole) == 30
    for block_size in (1, 2, 3, 13, 64, 257):
        blocks = read_blocks(path, block_size)
        assert [record for block in blocks for record in block] == whole


odd_headers = st.sampled_from(
    [b"a", b"a b", b"a\tb c", b"a b\tc", b"\xe9 x", b"\xc3\xa9", b"a>b >"]
)
odd_bodies = st.sampled_from(
    [b"", b"\n", b"MKVL\n", b"MK\nVL\n", b"mk\n", b" MK \nJ\n", b"M*K*\n", b"MK\n\n \n"]
)
faults = st.sampled_from([b">\nMK\n", b"> x\nMK\n", b">a\nM1\n", b">a\nM K\n", b">a\rb\nMK\n"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(odd_headers, odd_bodies), min_size=1, max_size=9), st.none() | faults)
def test_records_read_together_are_those_read_one_by_one(tmp_path_factory, records, fault):
    texts = [b">" + header + b"\n" + body for header, body in records]
    path = tmp_path_factory.mktemp("together") / "in.fasta"
    alone = []
    for text in texts:
        path.write_bytes(text)
        alone += read_records(path)
    path.write_bytes(b"".join(texts))
    assert list(read_records(path)) == alone
    if fault:
        path.write_bytes(b"".join([*texts, fault, *texts, b">\n0\n"]))
        line = b"".join(texts).count(b"\n") + 1
        with pytest.raises(UserError, match=rf"record {len(texts) + 1} '.*' \(line {line}\): "):
            list(read_records(path))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("block_size", [1, 1000, 1 << 20])
def test_who_watches_sees_the_bytes_of_the_file_once(tmp_path, compress, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(compress(b">a\nMKV\n" * 500))
    seen = bytearray()
    for _ in read_blocks(path, block_size, seen.extend):
        pass
    assert seen == path.read_bytes()


@pytest.mark.parametrize("block_size", [1, 7, 1 << 20])
def test_records_keep_the_line_of_their_header(tmp_path, block_size):
    path = tmp_path / "in.fasta"
    path.write_bytes(b"\n>a\nMK\nVL\n\n>b\n>c\r\nAC\n>d\nWW")
    lines = [(block.ids, block.lines.tolist()) for block in read_blocks(path, block_size)]
    assert [pair for ids, at in lines for pair in zip(ids, at, strict=True)] == [
        ("a", 2),
        ("b", 6),
        ("c", 7),
        ("d", 9),
    ]
    kept = [block.select(block.sequences) for block in read_blocks(path, block_size)]
    assert [line for block in kept for line in block.lines.tolist()] == [2, 7, 9]
