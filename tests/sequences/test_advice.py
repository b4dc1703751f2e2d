"""What is said of a line that is no sequence: where it is, what it probably is, what to do."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packedesm.errors import UserError
from packedesm.sequences.advice import advise
from packedesm.sequences.fasta import read_blocks, read_records

S = "MKTAYIAKQRQISFVKSHFSRQ"
MARKS = [":", "/", "|", ";", ",", "+", "//", "\N{FULLWIDTH COLON}"]
SAME = "the protein stays the same"
GAPS = "gaps of an alignment can be removed"
CHAINS = "may separate chains; give each a record of its own"
COMMENT = "looks like a comment"
HEADER = "a header begins with a plain '>' at the very start"
PARTS = "of what blanks separate, join what is one protein, and give chains a record each"
TEXT = "is text and no sequence; remove the record"
TABLE = "write each row as a line '>id'"
ASK = "look it up at its source, or write X if it is unknown"
COUNTS = f"numbers that count residues, and the blanks, can be removed: {SAME}"
ENDS = "write the residues alone; gaps of an alignment can be removed"
BRACKETS = "may be a modification, a choice or a repeat"
STOP = "it may be a stop, as gffread writes it"
THREE = "three-letter code; write each residue as one letter"

LINES = {
    "MKT.AYIA": STOP,
    S + ".": STOP,
    "MKT..AY-": STOP,
    "MKT...AY": "residues that are left out",
    "MKT\N{HORIZONTAL ELLIPSIS}AY": "residues that are left out",
    "K.PEPTIDER.A": "write only what stands between the dots",
    "-.PEPTIDE.R": "write only what stands between the dots",
    **{f"{S}{mark}{S}": CHAINS for mark in MARKS},
    f"{S}:{S}:{S}": CHAINS,
    f"{S} {S}": PARTS,
    f"{S} / {S}": PARTS,
    "MKT\tAYI": PARTS,
    "MKT\N{NO-BREAK SPACE}AYI": PARTS,
    "see the notes": PARTS,
    "note: mild": PARTS,
    "Sequence unavailable": TEXT,
    "SEQUENCE UNAVAILABLE": TEXT,
    "no sequence was found": TEXT,
    "Error 500: not found": TEXT,
    "hypothetical protein, partial": TEXT,
    "; MKT": COMMENT,
    ";": COMMENT,
    "# a comment": COMMENT,
    "#MKT": COMMENT,
    "//": COMMENT,
    "// end": COMMENT,
    "!x": COMMENT,
    " >b c": HEADER,
    "\N{ZERO WIDTH NO-BREAK SPACE}>b": HEADER,
    "\N{FULLWIDTH GREATER-THAN SIGN}b": HEADER,
    "MKTAY>b c": "two records may have run together",
    "sp|P12345|AATM_RABIT Aspartate": "a header without its '>'",
    "A0A1 Some protein OS=Homo sapiens OX=9606": "a header without its '>'",
    "WP_012345678.1 kinase [Escherichia coli]": "a header without its '>'",
    "<b>MKT</b>": "web page",
    "MKT&nbsp;AYI": "web page",
    "&gt;b": "web page",
    r"MKT\nAYI": "a line end is written out",
    "MKT%0AAYI": "a line end is written out",
    "1 mktayiakqr qisfvkshfs": COUNTS,
    "MKTAYIAKQR QISFVKSHFS 60": COUNTS,
    "MKTAYIAKQR QISFVKSHFS RQ": f"blocks of ten residues can be removed: {SAME}",
    "10 Chain 1": TEXT,
    "N/A": TEXT,
    "M.K.T": STOP,
    "chain 15": TEXT,
    "'unknown',": TEXT,
    "SQ   SEQUENCE   430 AA;  47000 MW": TEXT,
    "Fab 3": PARTS,
    "mild 14": PARTS,
    "MKTAYIAKQR Q": PARTS,
    "mktayiakqr qisfvkshfs        60": COUNTS,
    "121 mk": COUNTS,
    "122 mk": PARTS,
    "MKTAYIAKQR 12": PARTS,
    "M K": PARTS,
    "H-MKTAY-OH": ENDS,
    "Ac-MKTAY-NH2": ENDS,
    "MKTAY-NH2": ENDS,
    "N-MKTAY": ENDS,
    "M K T A Y": f"remove what is between them, {SAME}",
    "M-K-T-A-Y": f"remove what is between them, {SAME}",
    "M, K, T": f"remove what is between them, {SAME}",
    '"MKTAYIA"': f"remove the punctuation around the sequence: {SAME}",
    "\N{LEFT DOUBLE QUOTATION MARK}MKT\N{RIGHT DOUBLE QUOTATION MARK}": SAME,
    "MKTAYIA,": "may be punctuation, which can be removed, or separate chains",
    "MKTAYIA;": "may be punctuation, which can be removed, or separate chains",
    **{f"{S}{mark}": CHAINS for mark in "/:|"},
    f"/{S}": CHAINS,
    "/": CHAINS,
    f"#{S}": "a comment, then remove the record; or residues after a mark",
    f"; {S}": "a comment, then remove the record; or residues after a mark",
    "MKTAYIA--GENE--KQR": GAPS,
    "MKT-DATA-AYIA": GAPS,
    f"<cls>{S}<eos>": "the model's own tokens",
    "MK<mask>AY": "the model's own tokens",
    "MKT\N{MIDDLE DOT}AYIA": STOP,
    "MKT\N{VARIATION SELECTOR-16}AYIA": f"it cannot be seen; remove it, {SAME}",
    "MK--TAY": GAPS,
    "------": GAPS,
    "mk~~t": GAPS,
    "_MKT_": GAPS,
    "MK\N{EN DASH}T": GAPS,
    "MK\N{MINUS SIGN}T": GAPS,
    "a1,MKTAYIA": TABLE,
    "P1234\tMKTAYIA": TABLE,
    "a_b;MKTAYIA;22": TABLE,
    "PEPM(ox)TIDE": BRACKETS,
    "PEPM(+15.99)TIDE": BRACKETS,
    "[Acetyl]-PEPTIDE": BRACKETS,
    "(GGGGS)3": BRACKETS,
    "Met-Lys-Thr": THREE,
    "Met Lys Thr": THREE,
    "MET LYS THR": THREE,
    "Ac-Met-Lys-NH2": THREE,
    "30 31 32": "numbers and no residue",
    "0.5": "numbers and no residue",
    "MK1T": f"numbers are no residues; {ASK}",
    "MK?T": ASK,
    "MK=": ASK,
    "@MK": ASK,
    "MK\0T": ASK,
    "MK\x0bT": ASK,
    "MK\x1aT": ASK,
    "MK\x1a": f"an old mark for the end of a file; remove it, {SAME}",
    "MKT\N{NO-BREAK SPACE}": f"it cannot be seen; remove it, {SAME}",
    "MK\N{ZERO WIDTH SPACE}T": f"it cannot be seen; remove it, {SAME}",
    "MK\N{ZERO WIDTH NO-BREAK SPACE}T": f"it cannot be seen; remove it, {SAME}",
    "MK\N{SOFT HYPHEN}T": f"it cannot be seen; remove it, {SAME}",
    "MK\N{LINE SEPARATOR}T": f"it cannot be seen; remove it, {SAME}",
    "M\N{FULLWIDTH LATIN CAPITAL LETTER K}T": "write the plain letter, A to Z",
    "M\N{CYRILLIC CAPITAL LETTER A}T": "write the plain letter, A to Z",
    "M\N{GREEK CAPITAL LETTER ALPHA}T": "write the plain letter, A to Z",
    "MK\N{COMBINING ACUTE ACCENT}T": "write the plain letter that is meant",
    "MK\udc96T": GAPS,  # in Windows-1252 an en dash
    "MK\udc81TA": ASK,
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_told_by_what_it_is(line):
    assert LINES[line] in advise(line)


def test_what_is_to_be_removed_depends_on_what_else_the_record_holds(tmp_path):
    path = tmp_path / "in.fasta"
    for above, below in [("MKT\n", ""), ("", "MKT\n")]:
        path.write_text(f">a x\n{above}of unknown function\n{below}>b\nMK\n")
        assert "remove all of the line" in refusal(path)
    path.write_text(">a x\n\nof unknown function\n\n>b\nMK\n")
    assert "remove the record" in refusal(path)


def refusal(path, block_size=1 << 20) -> str:
    with pytest.raises(UserError) as caught:
        list(read_blocks(path, block_size))
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\N{EN DASH}", "character '\u2013' (U+2013 EN DASH)"),
        ("\N{NO-BREAK SPACE}", "character U+00A0 NO-BREAK SPACE"),
        ("\N{ZERO WIDTH SPACE}", "character U+200B ZERO WIDTH SPACE"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}", "character U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("\N{SOFT HYPHEN}", "character U+00AD SOFT HYPHEN"),
        ("\N{CYRILLIC CAPITAL LETTER A}", "character '\u0410' (U+0410 CYRILLIC CAPITAL LETTER A)"),
        (
            "\N{FULLWIDTH LATIN CAPITAL LETTER K}",
            "character '\uff2b' (U+FF2B FULLWIDTH LATIN CAPITAL LETTER K)",
        ),
        ("\N{DNA DOUBLE HELIX}", "character '\U0001f9ec' (U+1F9EC DNA DOUBLE HELIX)"),
        ("\x85", "character U+0085 at"),
        (b"\x96", "byte 0x96 (not UTF-8, in Windows-1252 U+2013 EN DASH)"),
        (b"\xe2\x80", "byte 0xe2 (not UTF-8, in Windows-1252 U+00E2 LATIN SMALL LETTER A WITH"),
        (b"\x81", "byte 0x81 (not UTF-8)"),
        ("\x1b", r"character '\x1b'"),
        ("'", 'character "\'"'),
    ],
)
def test_a_character_is_shown_whole_wherever_blocks_end(tmp_path, written, shown, block_size):
    path = tmp_path / "in.fasta"
    letter = written if isinstance(written, bytes) else written.encode()
    path.write_bytes(b">a\nMK\n>b c\n M*j\n\nMK" + letter + b"TAYI\n>c\nMK\n")
    message = refusal(path, block_size)
    assert f"record 2 'b' (line 3): {shown}" in message
    assert " at residue 6 (line 6) is no amino acid; " in message


def test_three_letter_code_is_no_sequence_although_its_letters_are_residues(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(">a\nMK\n>b\nMetLy\nsThr\n>c\nMK\n")
    assert refusal(path).endswith(f"record 2 'b' (line 3): the sequence is written in {THREE}")
    for sound in ("Met", "MetLysT", "Metlys", "metlysthr", "METLYSTHR", "MkTaYi"):
        path.write_text(f">b\n{sound}\n")
        assert [record.sequence.decode() for record in read_records(path)] == [sound.upper()]


def test_the_title_of_a_pir_entry_is_told_from_its_sequence(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(">P1;CRAB_ANAPL\nALPHA CRYSTALLIN B CHAIN\n MDITIHNPLI RR\n*\n")
    assert "PIR (NBRF), where this line is a title; remove all of it" in refusal(path)
    path.write_text(">P1;CRAB_ANAPL\n MDITIHNPLI RRPLFSWLAP\n MDITIHNPLI RR\n*\n")
    assert "PIR" in refusal(path)
    path.write_text(">P1;CRAB_ANAPL\nMDIT\n MDITIHNPLI RRPLFSWLAP RR\n*\n")
    assert f"blocks of ten residues can be removed: {SAME}" in refusal(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "mark", ["(", "<", "&a", " ", "\t ", "1", "1 ", ",", "-", ".", "ALA", "\\", ">", "["]
)
def test_advice_on_a_very_long_line_comes_soon(tmp_path, mark):
    path = tmp_path / "in.fasta"
    path.write_text(f">a\n{S * 10_000}{mark * 1_000_000}{S}?\n>b\nMK\n")
    assert f"at residue {22 * 10_000 + (1 if mark != 'ALA' else 3_000_022 + 1):,} " in refusal(path)


proteins = st.text("ACDEFGHIKLMNPQRSTVWY", min_size=20, max_size=40)


def every(letters: str, size: int, by: str) -> str:
    return by.join(letters[i : i + size] for i in range(0, len(letters), size))


HARMLESS = {
    "blocks": lambda s: every(s, 10, " "),
    "counted": lambda s: f"  61 {every(s.lower(), 10, ' ')}",
    "counted after": lambda s: f"{every(s, 10, ' ')}   {len(s)}",
    "spaced": lambda s: " ".join(s),
    "quoted": lambda s: f'"{s}",',
    "zero width": lambda s: every(s, 5, "\N{ZERO WIDTH SPACE}"),
    "hyphenated": lambda s: every(s, 7, "\N{SOFT HYPHEN}"),
    "no-break at the end": lambda s: s + "\N{NO-BREAK SPACE}",
}
OTHERWISE = {
    **{f"chains {mark}": lambda s, mark=mark: every(s, 9, mark) for mark in [*MARKS, " "]},
    "stops": lambda s: every(s, 8, "."),
    "gaps or stops": lambda s: every(s, 8, "-"),
    "modified": lambda s: f"{s[:4]}(Phospho){s[4:]}",
    "repeat": lambda s: f"({s})2",
    "neighbours": lambda s: f"{s[0]}.{s[1:-1]}.{s[-1]}",
    "written line end": lambda s: rf"{s}\n{s}",
    "comment": lambda s: f"#{s}",
    "named": lambda s: f"a_1,{s}",
    "unknown": lambda s: f"{s}?{s}",
    "homoglyph": lambda s: f"{s}\N{CYRILLIC CAPITAL LETTER A}{s}",
    "numbered": lambda s: f"{s}1{s}",
    "label": lambda s: f"Sequence: {s}",
}


def is_harmless(advice: str) -> bool:
    """Whether an edit is proposed that leaves the protein as it is, whatever the line was."""
    return SAME in advice and GAPS not in advice


@settings(max_examples=40, deadline=None)
@given(proteins)
def test_only_what_is_no_letter_is_removed_as_harmless(protein):
    for name, disguise in HARMLESS.items():
        assert is_harmless(advise(disguise(protein))), name
    for name, disguise in OTHERWISE.items():
        assert not is_harmless(advise(disguise(protein))), name


scraps = st.one_of(
    st.text("ACDEFGHIKLMNPQRSTVWYmkj*", max_size=12),
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=4),
    st.sampled_from([" ", "\t", "-", ".", ":", "|", ",", "\r", "Met", "available", "&gt;", "OS="]),
)
damaged = st.lists(scraps, min_size=1, max_size=6).map("".join).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(damaged, st.binary(max_size=3).filter(lambda data: b"\n" not in data), st.integers(1, 5))
@example(b"", b"\xe2\x80", 1)
@example(",\N{MASCULINE ORDINAL INDICATOR}".encode(), b"", 1)
def test_damaged_lines_are_refused_in_one_line_that_gives_no_letter_up(
    tmp_path_factory, line, insert, block_size
):
    path = tmp_path_factory.getbasetemp() / "damaged.fasta"
    path.write_bytes(b">a\nMK\n>b c\n" + line + insert + b"\n>c\nMK\n")
    try:
        list(read_blocks(path, block_size))
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message.replace(str(path), "")) < 600
        place, _, advice = message.partition(" is no amino acid; ")
        if advice and is_harmless(advice):
            assert re.search(r"record 2 'b' \(line 3\): .* at residue \d+ \(line 4\)$", place)
            text = (line + insert).decode("utf-8", "replace")
            if "remove it," not in advice:  # not this character alone
                assert not set(text) & set(":/|?+_<>()[]{}&@#%\\=.")
                assert all(c.isascii() or not c.isalpha() for c in text)
