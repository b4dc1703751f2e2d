"""What a file that does not begin as FASTA does probably is, and how to get FASTA out of it."""

from __future__ import annotations

import re

_LOOKED_AT = 4096  # bytes
_ROWS = "write each row as a line '>id' and below it a line with the sequence"
_EXPORT = f"save it as CSV or text, and {_ROWS}"
_PROTEINS = "download the proteins of the same entries as FASTA"
_UNALIGNED = "write the proteins as FASTA without gaps, as by esl-reformat fasta"

HEADER = (
    r"(?:sp|tr|gi|ref|gb|emb|dbj|pir|prf|pdb|lcl|gnl)\||UniRef\d+_|[NXWY]P_\d{6}|ENS[A-Z]*P\d{6}"
    r"|.*\bO[SX]=|.*\[[A-Z][a-z]+ [a-z]+\]$"
)
"""Regular expression of how headers begin, or what they hold, where sequences come from."""

# A blank or a line end first stands for text that begins with blank lines.
_ENCODINGS = [
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|[>\s]\0\0\0|\0\0\0[>\s]"), "UTF-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff|[>\s]\0|\0[>\s]"), "UTF-16"),
]

# First bytes, what it is, and a command that many have.
_PACKED = [
    (rb"\x1f\x8b", "compressed with gzip twice", "gzip -d"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", "unzip"),
    (rb"BZh", "compressed with bzip2", "bzip2 -d"),
    (rb"\xfd7zXZ\0", "compressed with xz", "xz -d"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (rb"Rar!\x1a\x07", "a rar archive", "unrar x"),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "compressed with lz4", "lz4 -d"),
    (rb"\x1f[\x9d\xa0]", "compressed with compress (.Z)", "gzip -d"),
    (rb"\x5d\0\0", "compressed with lzma", "xz -d --format=lzma"),
    (rb"LZIP", "compressed with lzip", "lzip -d"),
    (rb"[^\0][\s\S]{256}ustar", "a tar archive", "tar -xf"),
]
# First bytes, what it is, and what to do; seen before the archives, as some of these are zip files.
_BINARY = [
    (
        rb"PK\x03\x04[\s\S]{26}(?:\[Content_Types\]|_rels/|docProps/|xl/|word/|mimetype)",
        "a workbook or document of an office program, such as Excel",
        _EXPORT,
    ),
    (rb"\xd0\xcf\x11\xe0", "a workbook or document of an office program", _EXPORT),
    (
        rb"\0\x05\x16\x07",
        "what macOS keeps beside a file, under its name with ._ before it",
        "give the file itself",
    ),
    (rb"\{\\rtf", "rich text (RTF)", "save it as plain text"),
    (rb"[A-Z*]+\n\0", "a database of MMseqs2", "write FASTA, as by mmseqs convert2fasta"),
    (rb"%PDF", "a PDF document", "get the sequences from their source as FASTA"),
    (rb"SQLite format 3\0", "a SQLite database", f"query it, and {_ROWS}"),
    (rb"PAR1|ARROW1", "a Parquet or Arrow table", f"read it, and {_ROWS}"),
    (rb"BAM\x01", "a BAM file, which holds reads of DNA", "give proteins as FASTA"),
]
# The beginning of the first line that is not blank, what it looks like, and what to do.
_TEXT = [
    (
        rb"(?:[ \t]|\xef\xbb\xbf|\xe2\x80\x8b|\xc2\xa0)+>|\xef\xbc\x9e",
        "a header",
        "begin it with a plain '>' at the very start of the line",
    ),
    (
        rb"##gff-version",
        "GFF3, whose ##FASTA part is the genome",
        "write the proteins, as by gffread -S -y proteins.fasta -g genome.fasta FILE",
    ),
    (rb"@(?:HD|SQ|RG|PG|CO)\t", "SAM, which holds reads of DNA", "give proteins as FASTA"),
    (rb"@", "FASTQ, which holds reads of DNA", "translate them, and give proteins as FASTA"),
    (
        rb"(?i)<(?:!doctype html|html|head|body|script)",
        "a web page",
        "see in a browser what it says, and download the file itself",
    ),
    (rb"<", "XML", "download the same entries as FASTA"),
    (rb"[\[{]\s*[\"{\[\]}]", "JSON", "download the same entries as FASTA"),
    (rb"LOCUS {3}", "GenBank", _PROTEINS),
    (rb"ID {3}", "UniProt's or EMBL's text format", _PROTEINS),
    (rb"(?:HEADER|TITLE|CRYST1|REMARK|SEQRES|MODEL|ATOM|HETATM) ", "a PDB structure", _PROTEINS),
    (rb"data_", "an mmCIF structure", _PROTEINS),
    (rb"# STOCKHOLM", "an alignment (Stockholm)", _UNALIGNED),
    (rb"CLUSTAL|MUSCLE \(", "an alignment (Clustal)", _UNALIGNED),
    (rb"[ \t]*\d+[ \t]+\d+[ \t]*\n", "an alignment (PHYLIP)", _UNALIGNED),
    (rb"(?i)#NEXUS", "an alignment (NEXUS)", _UNALIGNED),
    (rb"!!|PileUp", "an alignment (GCG)", _UNALIGNED),
    (rb"HMMER\d", "a profile of HMMER", "give the sequences themselves as FASTA"),
    (rb"BLAST|# T?BLAST", "a report of BLAST", "get the sequences of its hits as FASTA"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "run git lfs pull for the file itself"),
    (rb"[;#!]|//", "a comment", "remove such lines, and begin each record with '>'"),
    (HEADER.encode(), "a header without its '>'", "write one before each"),
    (rb"[^\n]*(?:\t|[,;](?! ))", "a table", _ROWS),
    (rb"[A-Za-z*]+[ \t]*(?:\n|\Z)", "a sequence", "write a line such as >name above it"),
]


def encoding(start: bytes) -> str | None:
    """Return the name of the text encoding whose mark or NULs a file begins with, if not UTF-8."""
    return next((name for pattern, name in _ENCODINGS if pattern.match(start)), None)


def binary(start: bytes) -> str | None:
    """Say what a file is whose first bytes, decompressed, are no text, and what to do."""
    if found := _first(_BINARY, start):
        return "{}; {}".format(*found)
    if found := _first(_PACKED, start):
        return "{}; unpack it ({}), and give FASTA, plain or compressed with gzip".format(*found)
    return None


def text(start: bytes) -> str | None:
    """Say what a text looks like that begins with another line than a header, and what to do."""
    found = _first(_TEXT, start)
    return "it looks like {}: {}".format(*found) if found else None


def _first(table: list[tuple[bytes, str, str]], start: bytes) -> tuple[str, str] | None:
    start = start[:_LOOKED_AT]
    return next(((name, do) for pattern, name, do in table if re.match(pattern, start)), None)
