"""What does not begin as FASTA does is told by what it is, with what to do."""

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from packedesm.errors import UserError
from packedesm.sequences.fasta import read_blocks

FASTA = b">a\nMKTAYIAKQRQISFVKSHFSRQ\n"


def tar(tmp_path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("proteins.fasta")
        member.size = len(FASTA)
        archive.addfile(member, io.BytesIO(FASTA))
    return stream.getvalue()


def zipped(name: str):
    def write(_tmp_path) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(name, FASTA)
        return stream.getvalue()

    return write


def sqlite(tmp_path) -> bytes:
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("create table proteins (id, sequence)")
    return (tmp_path / "db").read_bytes()


def parquet(_tmp_path) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), stream)
    return stream.getvalue()


# What Python can write is written; of the rest the first bytes that their formats prescribe.
BINARY = {
    "tar": (tar, "a tar archive; unpack it (tar -xf)"),
    "zip": (zipped("proteins.fasta"), "a zip archive; unpack it (unzip)"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "a zip archive"),
    "xlsx": (zipped("[Content_Types].xml"), "such as Excel; save it as CSV"),
    "docx": (zipped("word/document.xml"), "a workbook or document of an office program"),
    "ods": (zipped("mimetype"), "a workbook or document of an office program"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook or document of an office program"),
    "bzip2": (lambda _: bz2.compress(FASTA), "compressed with bzip2; unpack it (bzip2 -d)"),
    "xz": (lambda _: lzma.compress(FASTA), "compressed with xz; unpack it (xz -d)"),
    "lzma": (
        lambda _: lzma.compress(FASTA, lzma.FORMAT_ALONE),
        "compressed with lzma; unpack it (xz -d --format=lzma)",
    ),
    "zstd": (
        lambda _: pyarrow.compress(FASTA, "zstd", asbytes=True),
        "compressed with zstd; unpack it (zstd -d)",
    ),
    "lz4": (
        lambda _: pyarrow.compress(FASTA, "lz4", asbytes=True),
        "compressed with lz4; unpack it (lz4 -d)",
    ),
    "old lz4": (b"\x02\x21\x4c\x18" + bytes(9), "compressed with lz4"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7z archive; unpack it (7z x)"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "a rar archive; unpack it (unrar x)"),
    ".Z": (b"\x1f\x9d\x90", "compressed with compress (.Z); unpack it (gzip -d)"),
    "lzip": (b"LZIP\x01", "compressed with lzip"),
    "gzip twice": (
        lambda _: gzip.compress(gzip.compress(FASTA)),
        "compressed with gzip twice; unpack it (gzip -d)",
    ),
    "AppleDouble": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "what macOS keeps beside a file"),
    "RTF": (rb"{\rtf1\ansi >a", "rich text (RTF); save it as plain text"),
    "MMseqs2": (b"MKTAYIAK\n\0MKV\n\0", "a database of MMseqs2; write FASTA, as by mmseqs"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "SQLite": (sqlite, "a SQLite database; query it, and write each row as a line '>id'"),
    "Parquet": (parquet, "a Parquet or Arrow table; read it, and write each row as a line '>id'"),
    "BAM": (b"BAM\x01" + bytes(9), "a BAM file"),
}


@pytest.fixture
def refusal(tmp_path):
    def refusal(content: bytes, block_size=1 << 20) -> str:
        path = tmp_path / "in.fasta"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            list(read_blocks(path, block_size))
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(f"{path}: ")
        return message.removeprefix(f"{path}: ")

    return refusal


@pytest.mark.parametrize("name", BINARY)
def test_an_archive_or_another_program_s_file_is_told_by_its_first_bytes(tmp_path, refusal, name):
    content, words = BINARY[name]
    content = content if isinstance(content, bytes) else content(tmp_path)
    for packed in (content, gzip.compress(content)):
        assert refusal(packed).startswith(f"is {words}" if not words.startswith("such") else "is a")
        assert words in refusal(packed)


TEXTS = {
    "##gff-version 3\nc1\tx\tCDS\n##FASTA\n>c1\nACGT\n": "GFF3, whose ##FASTA part is the genome",
    "@read/1\nACGT\n+\nIIII\n": "FASTQ, which holds reads of DNA: translate them",
    "@HD\tVN:1.6\n": "SAM, which",
    "<!DOCTYPE html>\n<html>": "a web page: see in a browser what it says",
    "<HTML><head>": "a web page",
    '<?xml version="1.0"?>\n<uniprot>': "XML: download the same entries as FASTA",
    '{"results": []}': "JSON: download",
    '[\n  {"id": 1}]': "JSON: download",
    "LOCUS       NP_000001  10 aa\n": "GenBank: download the proteins of the same entries as FASTA",
    "ID   AATM_RABIT   Reviewed;  430 AA.\n": "UniProt's or EMBL's text format: download",
    "HEADER    HYDROLASE   01-JAN-00   1ABC\n": "a PDB structure",
    "ATOM      1  N   MET A   1\n": "a PDB structure",
    "data_1ABC\n#\n_entry.id 1ABC\n": "an mmCIF structure",
    "# STOCKHOLM 1.0\n": "an alignment (Stockholm): write the proteins as FASTA without gaps",
    "CLUSTAL W (1.83)\n\na  MK-T\n": "an alignment (Clustal)",
    " 2 10\na         MKTAYIAKQR\n": "an alignment (PHYLIP)",
    "#NEXUS\nBEGIN DATA;\n": "an alignment (NEXUS)",
    "!!AA_MULTIPLE_ALIGNMENT 1.0\n": "an alignment (GCG)",
    "HMMER3/f [3.3]\n": "a profile of HMMER",
    "BLASTP 2.12.0+\n": "a report of BLAST",
    "version https://git-lfs.github.com/spec/v1\n": "a pointer of Git LFS: run git lfs pull",
    "; a comment\n>a\nMK\n": "a comment: remove such lines",
    "# a comment\n>a\nMK\n": "a comment: remove such lines",
    "sp|P1|A_B Some protein, or so OS=Homo sapiens\nMK\n": "a header without its '>': write one",
    "id,sequence\n1,MKT\n": "a table: write each row as a line '>id' and below it a line",
    "id\tsequence\n": "a table",
    "id;sequence\n": "a table",
    "MKTAYIAKQR\nQISFV\n": "a sequence: write a line such as >name above it",
    "mktayiakqr": "a sequence: write a line",
    " >a\nMK\n": "a header: begin it with a plain '>' at the very start of the line",
    "\ufeff\ufeff>a\nMK\n": "a header: begin it",
    "\uff1ea\nMK\n": "a header: begin it",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("above", ["", "\n \n"])
def test_a_text_is_told_by_its_first_line(refusal, text, above):
    for content in (above + text, (above + text).replace("\n", "\r\n")):
        message = refusal(content.encode())
        assert message.startswith(f"is not FASTA: line {3 if above else 1} begins with ")
        assert TEXTS[text] in message


@pytest.mark.parametrize("text", ["Dear all, see below\n", "\x7fELF\x02", "MK-T\n", "\0" * 300])
def test_what_is_not_known_is_not_guessed(refusal, text):
    assert refusal(text.encode()).endswith("where the first '>' should be")


@pytest.mark.parametrize("block_size", [1, 7, 1 << 20])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_is_refused_by_the_name_of_its_encoding(refusal, encoding, begin, block_size):
    message = refusal(f"{begin}>a\nMK\n".encode(encoding), block_size)
    assert message.startswith(f"is {encoding[:6].upper()} text; save it as UTF-8 or plain text")


@pytest.mark.parametrize("start", [b">PK\x03\x04", b">7z", b">\xff\xfe", b">LOCUS   "])
def test_what_begins_as_fasta_is_fasta(tmp_path, start):
    path = tmp_path / "in.fasta"
    path.write_bytes(start + b" x\nMK\n")
    (block,) = read_blocks(path)
    assert block.sequences == [b"MK"]
