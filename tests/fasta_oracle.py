"""What a FASTA file holds, read the plain way: the oracle of the fuzz tests.

It reads whole files line by line and knows nothing of the streaming reader. It says what the
records are, or only that there is no sure reading.
"""

import gzip
import hashlib
import re
import struct
import zlib
from dataclasses import dataclass

from packedesm.options import LengthPolicy, ShardOptions
from tests import bgzip

THREE_LETTERS = (
    "Ala Asx Cys Asp Glu Phe Gly His Ile Lys Leu Met Asn Pyl Pro Gln Arg Ser Thr Sec Val Trp Xaa "
    "Tyr Glx"
)


class Refused(Exception):
    """The input has no sure reading, or an option forbids it."""


@dataclass(frozen=True)
class Options:
    shards: int
    max_length: int
    long_sequences: str
    empty_sequences: str
    deduplicate: bool
    ids: str

    def typed(self) -> ShardOptions:
        length = LengthPolicy(self.max_length, self.long_sequences, window_overlap=1)
        return ShardOptions(length, self.empty_sequences, self.deduplicate, self.ids)


def content_of(data: bytes) -> bytes:
    """Decompress a file that is gzip by its first bytes; cut or damaged data is refused."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        content = gzip.decompress(data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise Refused from error
    blocked = data[3:4] == b"\x04" and data[12:14] == b"BC"
    if blocked and not data.endswith(bgzip.END):
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


def records_of(lines: list[bytes], ids: str) -> list[tuple[str, str, bytes, list[str]]]:
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
    return [record_of(header, b"".join(parts), ids) for header, parts in records]


def record_of(header: bytes, letters: bytes, ids: str) -> tuple[str, str, bytes, list[str]]:
    flags = []
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        text = header.decode("latin-1")
        flags.append("header_latin1")
    identifier, _, description = re.fullmatch("([^ \t]*)([ \t]?)(.*)", text, re.DOTALL).groups()
    if not identifier:
        raise Refused
    if ids == "header":
        identifier, description = text.rstrip(" \t"), ""
    sequence = []
    triples = [letters[i : i + 3].decode("latin-1") for i in range(0, len(letters), 3)]
    if len(triples) > 1 and set(triples) <= set(THREE_LETTERS.split()):
        raise Refused
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


def doubts_of(sequence: str) -> list[str]:
    flags = []
    spelled = "na|nan|nil|none|null|empty|missing|nodata|nosequence|(sequence)?unavailable"
    if re.fullmatch(f"{spelled}|notavailable|undefined|unknown", sequence.lower()):
        flags.append("missing_value")
    known = sequence.replace("X", "")
    bases = sum(letter in "ACGTUN" for letter in known)
    codes = all(letter in "ACGTURYSWKMBDHVN" for letter in known)
    kinds = len(set(known.replace("U", "T")) & set("ACGT"))
    several = kinds > 2 or set(known) == {"N"}
    if len(known) >= 20 and codes and bases / len(known) >= 0.8 and several:
        flags.append("nucleotide_like")
    if not known:
        flags.append("unknown_only")
    elif len(known) < len(sequence) / 2:
        flags.append("mostly_unknown")
    return flags


def expected(files: list[bytes], options: Options) -> list[dict]:
    """Return the rows of the index, and each row's sequence."""
    rows: list[dict] = []
    first_row: dict[bytes, int] = {}
    sequence_of: dict[str, bytes] = {}
    for file, data in enumerate(files, 1):
        records = records_of(lines_of(content_of(data)), options.ids)
        for number, (identifier, description, sequence, flags) in enumerate(records, 1):
            if not sequence:
                if options.empty_sequences == "error":
                    raise Refused
                continue
            long = len(sequence) > options.max_length
            if long and options.long_sequences == "error":
                raise Refused
            if sequence_of.setdefault(identifier, sequence) != sequence:
                raise Refused
            flags = [*flags, *doubts_of(sequence.decode())]
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
                    "file": file,
                    "record": number,
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
