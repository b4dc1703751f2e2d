"""What is likely no protein is flagged and told, and no real protein is."""

import re

import numpy as np
import pyarrow.parquet
import pytest

from packedesm.paths import Paths
from packedesm.sequences.doubts import find_doubts
from packedesm.sequences.fasta import read_records
from packedesm.sequences.flags import FLAGS
from packedesm.sequences.shards import write_shards
from tests.typed import shard_options
from tests.workflow import ROOT

DNA = b"ACGTTGCATTGACCAGTTACGATGCA"
PROTEIN = b"MKTAYIAKQRQISFVKSHFSRQ"


def flags_of(*sequences: bytes) -> list[tuple[int, str]]:
    return find_doubts([sequence.upper() for sequence in sequences])


def random_letters(letters: str, length: int, seed: int, p=None) -> bytes:
    return "".join(np.random.default_rng(seed).choice([*letters], length, p=p)).encode()


NUCLEOTIDES = {
    "DNA": DNA,
    "RNA": DNA.replace(b"T", b"U"),
    "the shortest": DNA[:20],
    "a contig rich in N": b"N" * 900 + DNA + b"N" * 900,
    "all N": b"N" * 200,
    "N and masked": b"N" * 20 + b"X" * 80,
    "a fifth ambiguous": DNA[:20] + b"RYKMS",
    "masked with X": b"X" * 500 + DNA + b"X" * 20,
    "AT-rich": random_letters("ACGT", 200, 1, p=[0.45, 0.05, 0.05, 0.45]),
    "a genome's": random_letters("ACGTN", 300_000, 2),
}
# Of only letters that stand for nucleotides too, or with few others.
PROTEINS = {
    "any": PROTEIN,
    "peptide of A, C, G, T": DNA[:19],
    "silk": b"GAGAGSGAGAGSGAGAGSGAGAGYGAGAGS",
    "antifreeze glycoprotein": b"AATAATAATAATAATAATAATAATAATAAT",
    "dipeptide repeat GA": b"GA" * 50,
    "poly-alanine": b"A" * 50,
    "poly-asparagine after M": b"M" + b"N" * 40,
    "ultra-high sulphur": b"GGCGSGCGGCGSGCGGCGSGCGGCGSGCGG",
    "protamine": b"MARYRHSRSRSRSRYRRRRRRRSRYRSRRRRYRGRRRRRSRRGRRRRGYSCRRYSRRRRRRY",
    "antifreeze": b"DTASDAAAAAAATAATAKAAAAATAATAAAAAAATAAT",
    "metallothionein": b"MDPNCSCATGGSCTCAGSCKCKECKCTSCKKSCCSCCPVGCAKCAQGCVCKGASEKCSCCA",
    "bases and glutamine": DNA[:20] + b"Q",
    "a quarter ambiguous": DNA[:20] + b"RYKMSWB",
    "one letter": b"Q" * 300,
    "one residue": b"M",
    "half unknown": b"MKVL" + b"XXXX",
    "NA in a longer one": b"NANA",
}


@pytest.mark.parametrize("name", NUCLEOTIDES)
def test_dna_and_rna_are_known(name):
    flags = [flag for _, flag in flags_of(NUCLEOTIDES[name])]
    assert flags[0] == "nucleotide_like"
    assert set(flags[1:]) <= {"mostly_unknown"}


@pytest.mark.parametrize("name", PROTEINS)
def test_odd_proteins_are_not_doubted(name):
    assert flags_of(PROTEINS[name]) == []


def test_random_dna_of_every_length_is_known():
    sequences = [random_letters("ACGT", 20 + seed % 180, seed) for seed in range(2000)]
    assert flags_of(*sequences) == [(k, "nucleotide_like") for k in range(2000)]


def test_no_protein_of_uniprot_is_doubted(uniprot_20k):
    sequences = [record.sequence for record in read_records(uniprot_20k)]
    assert flags_of(*sequences) == []
    # Nor are peptides from the same letters in any order.
    mixed = np.frombuffer(b"".join(sequences), np.uint8)[: 1 << 20].copy()
    np.random.default_rng(1).shuffle(mixed)
    peptides = [mixed[start : start + 20].tobytes() for start in range(0, len(mixed), 20)]
    assert "nucleotide_like" not in {flag for _, flag in flags_of(*peptides)}


@pytest.mark.parametrize("word", ["NA", "nan", "None", "null", "NULL", "Missing", "unknown"])
def test_words_for_a_missing_value_are_known(word):
    assert flags_of(word.encode()) == [(0, "missing_value")]


def test_unknown_residues_are_counted():
    assert flags_of(b"XXXX", b"X", b"MXX", b"LE" + b"X" * 40, b"MX", b"X" * 1000) == [
        (0, "unknown_only"),
        (1, "unknown_only"),
        (2, "mostly_unknown"),
        (3, "mostly_unknown"),
        (5, "unknown_only"),
    ]


@pytest.fixture
def write(tmp_path):
    """Shard one file; return its index and its summary."""

    def write(text: bytes, **options):
        fasta, paths = tmp_path / "in.fasta", Paths(tmp_path / "out")
        fasta.write_bytes(text)
        summary = write_shards([fasta], paths, shard_options(**options), shards=1, width=64)
        return pyarrow.parquet.read_table(paths.shard_index).to_pydict(), summary

    return write


def test_doubts_are_flagged_counted_and_told_with_the_first_ids(write, caplog):
    text = b">p\n%s\n>d x\n%s\n>u\nX*X\n>m\nNa\n>h\nMXJ\n" % (PROTEIN, DNA.lower())
    index, summary = write(text, max_length=25)
    assert index["flags"] == [
        "",
        "upper_cased,nucleotide_like,truncated",
        "stop_replaced,unknown_only",
        "upper_cased,missing_value",
        "j_replaced,mostly_unknown",
    ]
    for flag in ("nucleotide_like", "unknown_only", "missing_value", "mostly_unknown"):
        assert summary["flags"][flag] == 1
    told = [w for w in summary["warnings"] if re.search(r"\(flag \w+\): '\w'$", w)]
    assert [line[-3:] for line in told] == ["'d'", "'m'", "'u'", "'h'"]
    assert told[0].startswith("1 of 5 records looks like DNA or RNA")
    assert set(told) <= {r.getMessage() for r in caplog.records if r.levelname == "WARNING"}
    assert not any("translate" in line for line in summary["warnings"])


def test_of_many_doubts_ten_are_named(write):
    records = [b">d%d\n%s\n" % (k, DNA + b"ACGT" * k) for k in range(11)]
    names = ", ".join(f"'d{k}'" for k in range(10))
    warning = write(b"".join(records))[1]["warnings"][-1]
    assert warning.endswith(f"(flag nucleotide_like): {names}, …")


def test_of_many_that_are_cut_none_is_named(write):
    records = b"".join(b">p%d\n%s\n" % (k, PROTEIN + b"V" * k) for k in range(11))
    (warning,) = write(records, max_length=20)[1]["warnings"]
    assert (
        warning == "11 of 11 records are longer than 20 residues and are cut there (flag truncated)"
    )


def test_a_file_of_mostly_dna_is_told_to_be_translated(write):
    dna = b"".join(b">d%d\n%s\n" % (k, DNA) for k in range(2))
    half = write(dna + b">p\n%s\n>q\n%s\n" % (PROTEIN, PROTEIN[1:]))[1]["warnings"]
    more = write(dna + b">p\n%s\n" % PROTEIN)[1]["warnings"]
    assert not any("translate" in line for line in half)
    assert more[0].startswith("most records look like DNA or RNA")
    assert "translate" in more[0]


def test_the_readme_has_every_flag_and_no_other():
    text = (ROOT / "README.md").read_text("utf-8")
    table = text[text.index("| flag | what happened |") :].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(FLAGS)
