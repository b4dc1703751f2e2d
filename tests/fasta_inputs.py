"""Generated FASTA files, sane and mad, and options to read them with."""

import gzip

from hypothesis import strategies as st

from packedesm.sequences.fasta import BLOCK_SIZE
from tests import bgzip
from tests.fasta_oracle import Options

residues = st.text("ACDEFGHIKLMNPQRSTVWYXBUZO", max_size=14).map(str.encode)
odd_letters = st.sampled_from(
    b"NA|XXXXX|ACGTTGCATTGACCAGTTACGATGCA|"
    b"*|**|j|J*|mkv|-|.|1| |\t| MK|MK \t|\0|\x1b|\xc3\xa9|\xff|>|;|MK>V|\x0b|\x85|\r"
    b"|Met|LysThr|MK:MK|\xe2\x80\x93|\xef\xbb\xbf>b|no data|1 mk mk|//|MK\xe2\x80".split(b"|")
)
sequence_lines = st.lists(st.one_of(residues, residues, residues, odd_letters), max_size=3)
few_ids = st.sampled_from([b"a", b"b", b"sp|P1|A", b"a", b"c"])  # so that some come twice
odd_headers = st.sampled_from(
    b"| |\t| x|\ta|a\tb c|a b\tc|a>b >c|\xe9|\xc3\xa9|\xef\xbb\xbfa|\x1b[31mred\x1b[0m|../../etc"
    b"|<script>alert(1)</script>|$(touch x)|a\0b|a\x85b|'\"`;&|\xa0a|a\xe2\x80\xa8b c|>|"
    b"\xe2\x80\xaeevil \xf0\x9f\xa7\xac".split(b"|")
)
any_text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8)
headers = st.one_of(few_ids, few_ids, odd_headers, any_text.map(str.encode), st.binary(max_size=6))
line_ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\n", b" \n"])


@st.composite
def sane_records(draw):
    """Mostly a file without a fault but with every oddity that has one reading."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
    letters = st.text("ACDEFGHIKLMNPQRSTVWYjmk*", min_size=1, max_size=12).map(str.encode)
    last = st.sampled_from([b""] * 4 + [b"*", b"**", b" ", b"\t "])
    letters = st.one_of(st.just(b"MK"), letters)  # so that sequences repeat
    bodies = draw(st.lists(st.tuples(letters, letters, last), min_size=1, max_size=9))
    texts = st.one_of(any_text.map(str.encode), st.sampled_from([b"\tx y", b" x\ty", b" \xe9"]))
    words = draw(st.lists(texts, min_size=1, max_size=3))
    name = draw(st.sampled_from([b"r", b"s", b"t"]))  # or ids of two files would always clash
    lines = [draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", end]))]
    for i, (first, second, after) in enumerate(bodies):
        lines += [
            b">%s%d%s" % (name, i, words[i % len(words)]),
            end,
            first,
            end,
            second,
            after,
            end,
        ]
    lines[-1] = draw(st.sampled_from([end] * 8 + [b"", b"\x0b", b"-", end + end + b"1"]))
    return b"".join(lines)


@st.composite
def structured(draw):
    """Headers and sequences, each now and then odd, lines ended in one way or in several."""
    records = draw(st.lists(st.tuples(headers, sequence_lines), max_size=6))
    ends = draw(st.lists(line_ends, min_size=1, max_size=2))
    lines = [line for header, body in records for line in (b">" + header, *body)]
    start = draw(st.sampled_from(b"||| |\xef\xbb\xbf|\n \n|\n\t|\r|; x\n|\xff\xfe".split(b"|")))
    text = b"".join(line + ends[i % len(ends)] for i, line in enumerate(lines))
    return start + (text if draw(st.booleans()) else text.rstrip(b"\r\n"))


scraps = st.lists(
    st.sampled_from(
        [b">", b"\n", b"\r", b" ", b"\t", b"a", b"MK", b"*", b"J", b"\0", b"\xff", b"1", b"\n>"]
    ),
    max_size=25,
).map(b"".join)
first_bytes = st.sampled_from(
    [
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x04",
        b"PK\x03\x04",
        b"BZh",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"7z\xbc\xaf\x27\x1c",
        b"\x1f\x9d",
        b"\xff\xfe\0\0",
        b"##gff-version 3\n",
        b"\xfe\xff",
    ]
)
garbage = st.builds(bytes.__add__, st.one_of(st.just(b""), first_bytes), st.binary(max_size=60))


@st.composite
def mutated(draw, contents):
    """Cut, flip, insert, repeat: what happens to bytes on their way."""
    data = draw(contents)
    for _ in range(draw(st.integers(0, 3))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        change = draw(st.sampled_from(["cut", "flip", "insert", "drop", "repeat"]))
        if change == "cut":
            data = data[:at]
        elif change == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << size % 8]) + data[at + 1 :]
        elif change == "insert":
            data = data[:at] + draw(scraps) + data[at:]
        elif change == "drop":
            data = data[:at] + data[at + size :]
        elif change == "repeat":
            data = data[: at + size] + data[at:]
    return data


@st.composite
def across_blocks(draw, contents):
    """Put the content where one read block of the reader ends and the next begins."""
    before = draw(st.integers(0, 80))
    filler = b">filler\n" + b"A" * (BLOCK_SIZE - before - 9) + b"\n"
    return filler + draw(contents)


@st.composite
def compressed(draw, contents):
    content = draw(contents)
    at = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(["gzip", "members", "bgzip", "bgzip without its end", "tail"]))
    if how == "gzip":
        return gzip.compress(content, 1)
    if how == "members":
        return gzip.compress(content[:at], 1) + gzip.compress(content[at:], 1)
    if how == "bgzip":
        return bgzip.bgzip(content, max(at, 1))
    if how == "bgzip without its end":
        return bgzip.bgzip(content, max(at, 1)).removesuffix(bgzip.END)
    return gzip.compress(content, 1) + draw(
        st.sampled_from([bytes(9), b"x", b">a\nMK\n", bgzip.END])
    )


plain = st.one_of(sane_records(), sane_records(), structured(), mutated(sane_records()))
text_files = st.one_of(plain, plain, plain, mutated(structured()), scraps, garbage)
archives = compressed(st.one_of(sane_records(), plain))
file_contents = st.one_of(
    *[sane_records(), text_files, text_files, archives, mutated(archives), across_blocks(plain)]
)
inputs = st.one_of(
    st.tuples(sane_records()),
    st.tuples(compressed(sane_records())),
    st.tuples(sane_records(), sane_records()),
    st.tuples(file_contents),
    st.tuples(file_contents),
    st.tuples(sane_records(), file_contents),
).map(list)
all_options = st.builds(
    Options,
    shards=st.integers(1, 4),
    max_length=st.sampled_from([5, 9, 1022]),
    long_sequences=st.sampled_from(["truncate"] * 6 + ["window", "full", "error"]),
    empty_sequences=st.sampled_from(["skip", "skip", "skip", "error"]),
    deduplicate=st.booleans(),
    ids=st.sampled_from(["first_word", "first_word", "header"]),
)
