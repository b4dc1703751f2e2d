"""Generated FASTA files, sane and mad: every record comes back as the policy says, or one line.

The oracle below reads whole files line by line and knows nothing of the streaming reader. It says
what the records are, or only that there is no sure reading.
"""

import gzip
import hashlib
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packedesm.errors import UserError
from packedesm.fasta import BLOCK_SIZE, read_blocks
from packedesm.layout import Layout
from packedesm.sharding import write_shards

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
MEMORY = Path("/dev/shm")  # where there is one: ten thousand folders and no disk


# The oracle


class Refused(Exception):
    """The input has no sure reading, or an option forbids it."""


@dataclass(frozen=True)
class Options:
    shards: int
    max_length: int
    long_sequences: str
    empty_sequences: str
    deduplicate: bool

    def keywords(self) -> dict:
        keys = ("max_length", "long_sequences", "empty_sequences", "deduplicate")
        return {"width": 64, "window_overlap": 1} | {key: getattr(self, key) for key in keys}


def content_of(data: bytes) -> bytes:
    """Decompress a file that is gzip by its first bytes; cut or damaged data is refused."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        content = gzip.decompress(data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise Refused from error
    bgzip = data[3:4] == b"\x04" and data[12:14] == b"BC"
    if bgzip and not data.endswith(BGZF_END):
        raise Refused
    return content


def lines_of(content: bytes) -> list[bytes]:
    """Split where the first line end says that lines end; a CR or LF left over is refused."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b">\0", b"\0>")):  # UTF-16
        raise Refused
    text = content.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
    first = re.search(rb"\r*\n|\r", text)
    if first and first[0] == b"\r":
        lines, other = text.split(b"\r"), b"\n"
    else:
        lines, other = [line.rstrip(b"\r") for line in text.split(b"\n")], b"\r"
    if any(other in line for line in lines):
        raise Refused
    return lines


def records_of(lines: list[bytes]) -> list[tuple[str, str, bytes, list[str]]]:
    """Return id, description, sequence and flags of every record, empty ones included."""
    records: list[tuple[bytes, list[bytes]]] = []
    for line in lines:
        if line.startswith(b">"):
            records.append((line[1:], []))
        elif records:
            records[-1][1].append(line.strip(b" \t"))
        elif line.strip(b" \t"):
            raise Refused
    if not records:
        raise Refused
    return [record_of(header, b"".join(parts)) for header, parts in records]


def record_of(header: bytes, letters: bytes) -> tuple[str, str, bytes, list[str]]:
    flags = []
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        text = header.decode("latin-1")
        flags.append("header_latin1")
    identifier, _, description = re.fullmatch("([^ \t]*)([ \t]?)(.*)", text, re.DOTALL).groups()
    if not identifier:
        raise Refused
    sequence = []
    if any(b"a"[0] <= letter <= b"z"[0] for letter in letters):
        flags.append("upper_cased")
    letters = letters.upper()
    if letters[-1:] == b"*":
        flags.append("stop_removed")
        letters = letters[:-1]
    for letter in letters.decode("latin-1"):
        if letter not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ*":
            raise Refused
        sequence.append("X" if letter in "J*" else letter)
    flags += ["stop_replaced"] * (b"*" in letters) + ["j_replaced"] * (b"J" in letters)
    return identifier, description, "".join(sequence).encode(), flags


def expected(files: list[bytes], options: Options) -> list[dict]:
    """Return the rows of the index, and each row's sequence."""
    rows: list[dict] = []
    first_row: dict[bytes, int] = {}
    sequence_of: dict[str, bytes] = {}
    for data in files:
        for identifier, description, sequence, flags in records_of(lines_of(content_of(data))):
            if not sequence:
                if options.empty_sequences == "error":
                    raise Refused
                continue
            long = len(sequence) > options.max_length
            if long and options.long_sequences == "error":
                raise Refused
            if sequence_of.setdefault(identifier, sequence) != sequence:
                raise Refused
            if long and options.long_sequences in ("truncate", "window"):
                flags = [
                    *flags,
                    {"truncate": "truncated", "window": "windowed"}[options.long_sequences],
                ]
            cut = long and options.long_sequences == "truncate"
            first = first_row.setdefault(sequence, len(rows))
            rows.append(
                {
                    "row": len(rows),
                    "id": identifier,
                    "description": description,
                    "length": len(sequence),
                    "embedded_length": options.max_length if cut else len(sequence),
                    "sha256": hashlib.sha256(sequence).hexdigest(),
                    "duplicate_of": first if options.deduplicate and first < len(rows) else None,
                    "flags": ",".join(flags),
                    "sequence": sequence,
                }
            )
    if not rows:
        raise Refused
    return rows


# Files


residues = st.text("ACDEFGHIKLMNPQRSTVWYXBUZO", max_size=14).map(str.encode)
odd_letters = st.sampled_from(
    b"*|**|j|J*|mkv|-|.|1| |\t| MK|MK \t|\0|\x1b|\xc3\xa9|\xff|>|;|MK>V|\x0b|\x85|\r".split(b"|")
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
    start = draw(
        st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\n \n", b"\r", b"; x\n", b"\xff\xfe"])
    )
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


def bgzip(content: bytes, block: int) -> bytes:
    members = []
    for start in range(0, len(content), block):
        part = content[start : start + block]
        compressor = zlib.compressobj(1, wbits=-15)
        data = compressor.compress(part) + compressor.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
        tail = struct.pack("<II", zlib.crc32(part), len(part))
        members.append(head + struct.pack("<H", len(head) + len(data) + 9) + data + tail)
    return b"".join(members) + BGZF_END


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
        return bgzip(content, max(at, 1))
    if how == "bgzip without its end":
        return bgzip(content, max(at, 1)).removesuffix(BGZF_END)
    return gzip.compress(content, 1) + draw(
        st.sampled_from([bytes(9), b"x", b">a\nMK\n", BGZF_END])
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
)


# The check


def shard_and_compare(folder: Path, contents: list[bytes], options: Options, block: int) -> str:
    """Shard the files, and compare with the oracle; return what they came to."""
    paths = [folder / f"{k}.fasta" for k in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    try:
        rows = expected(contents, options)
    except Refused:
        rows = None
    compare_reader(paths, contents, block)
    layout = Layout(folder / "out")
    try:
        summary = write_shards(paths, layout, options.shards, **options.keywords())
    except UserError as error:
        message = str(error)
        assert rows is None, message
        assert message.isprintable(), message
        assert len(message.replace(str(folder), "")) < 1000  # whatever the folder is called
        assert sorted(folder.iterdir()) == paths
        return "refused"
    assert rows is not None, "an odd file was taken for a sound one"
    compare_outputs(layout, summary, rows, options)
    return "embedded" if len(rows) == summary["unique"] else "embedded, with duplicates"


def compare_reader(paths: list[Path], contents: list[bytes], block: int) -> None:
    """The reader alone, with blocks so small that every boundary falls everywhere."""
    for path, content in zip(paths, contents, strict=True):
        if len(content) > 10_000:
            continue
        try:
            wanted = [(*r[:3], tuple(r[3])) for r in records_of(lines_of(content_of(content)))]
        except Refused:
            with pytest.raises(UserError):
                list(read_blocks(path, block))
        else:
            assert [tuple(r) for records in read_blocks(path, block) for r in records] == wanted


def compare_outputs(layout: Layout, summary: dict, rows: list[dict], options: Options) -> None:
    index = pyarrow.parquet.read_table(layout.shard_index).to_pylist()
    assert index == [{k: v for k, v in row.items() if k != "sequence"} for row in rows]
    own = [(row["row"], row["sequence"]) for row in rows if row["duplicate_of"] is None]
    found = [record for k in range(options.shards) for record in shard_records(layout, k)]
    assert found == own
    assert (summary["records"], summary["unique"]) == (len(rows), len(own))
    assert summary["residues"] == sum(row["length"] for row in rows)
    flags = Counter(flag for row in rows for flag in row["flags"].split(",") if flag)
    assert summary["flags"] == flags
    kept = {layout.shard_index, layout.sharding}
    kept |= {
        path(k) for k in range(options.shards) for path in (layout.shard_fasta, layout.shard_fai)
    }
    assert {path for path in layout.root.rglob("*") if path.is_file()} == kept
    assert not any(not warning.isprintable() for warning in summary["warnings"])


def shard_records(layout: Layout, shard: int) -> list[tuple[int, bytes]]:
    """Read a shard twice, by its lines and by its index, and return its records."""
    data = layout.shard_fasta(shard).read_bytes()
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert all(line.startswith(b">") for line in lines[::2])
    records = [(int(line[1:]), lines[2 * k + 1]) for k, line in enumerate(lines[::2])]
    indexed = []
    for line in layout.shard_fai(shard).read_text().splitlines():
        row, length, offset, bases, width = map(int, line.split("\t"))
        assert (bases, width) == (length, length + 1)
        indexed.append((row, data[offset : offset + length]))
    assert indexed == records
    return records


def fuzz(examples: int, *, derandomize: bool) -> Counter:
    """Run so many generated inputs and count what became of them."""
    counts: Counter[str] = Counter()
    base = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)

    @settings(
        max_examples=examples,
        deadline=timedelta(seconds=10),
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs, all_options, st.sampled_from([1, 2, 3, 7, 64]))
    def check(contents, options, block):
        counts["failed"] += 1
        with tempfile.TemporaryDirectory(dir=base) as folder:
            counts[shard_and_compare(Path(folder), contents, options, block)] += 1
        counts["failed"] -= 1

    try:
        check()
    finally:
        shutil.rmtree(base)
    return +counts


def in_words(counts: Counter) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{counts.total()} generated FASTA inputs: {kinds}"


def test_generated_inputs_come_back_whole_or_are_refused_in_one_line(tell):
    counts = fuzz(400, derandomize=True)
    tell(in_words(counts))
    assert counts["refused"] > 30
    assert counts["embedded"] + counts["embedded, with duplicates"] > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_generated_inputs(tell):
    counts = fuzz(10_000, derandomize=False)
    tell(in_words(counts))
    assert counts.total() >= 10_000
    assert counts["embedded, with duplicates"] > 100
