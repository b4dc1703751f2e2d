"""What a line that is no sequence probably is, and what to do about it.

Looked at only after a record was refused, and by the whole line: one byte does not tell a gap from
a stop, or a chain from a sentence. Where two readings are left, both are named. An edit that could
make another protein is never proposed as if it were harmless.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from packedesm.sequences.containers import HEADER

MIXED_LINE_ENDS = "line ends are mixed; convert the file, for example with dos2unix or mac2unix"

_SAME = "the protein stays the same"
_ASK = "look it up at its source, or write X if it is unknown"
_TABLE = "write each row as a line '>id' and below it a line with the sequence"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_DOTS = "\N{MIDDLE DOT}\N{BULLET}\N{BULLET OPERATOR}"
_CONTEXT = 2_000  # bytes of a line on either side of the fault that are looked at

_FAULT = re.compile(rb"[^A-Za-z*\n \t]|(?<=[^\n \t])[ \t]+(?=[^\n \t])")
_CODES = (
    "Ala|Arg|Asn|Asp|Asx|Cys|Gln|Glu|Glx|Gly|His|Ile|Leu|Lys|Met|Phe|Pro|Pyl|Sec|Ser|Thr|Trp|Tyr"
    "|Val|Xaa"
)
_THREE_LETTERS = re.compile(rf"(?:{_CODES}){{2,}}".encode())
_PIR = re.compile(rb"(?:[PF]1|[DR][LC]|N[13]|XX);")

_WORDS = (
    "amino|available|chain|chromosome|data|deleted|domain|error|family|fragment|found|gene|http|"
    "hypothetical|isoform|length|locus|missing|name|none|null|obsolete|partial|predicted|"
    "protein|pseudogene|putative|removed|residues?|sequences?|species|subunit|unavailable|"
    "uncharacterized|unknown|unnamed|withheld"
)
_ENDS = "Ac|Acetyl|Biotin|Boc|FITC|Fmoc|H|H2N|Myr|N|NH2|Palm|pE|pGlu", "amide|C|CONH2|COOH|NH2|OH"


def _is_counted(text: str) -> bool:
    """Tell whether the numbers before or after a line's blocks of ten count its residues."""
    words = text.split()
    first = int(words.pop(0)) if words and words[0].isdecimal() else None
    last = int(words.pop()) if words and words[-1].isdecimal() else None
    letters = "".join(words)
    plain = (
        letters.isascii() and letters.isalpha() and letters in (letters.upper(), letters.lower())
    )
    if not plain or first is last is None:
        return False
    above = None if last is None else last - len(letters)
    blocks = len(words[0]) >= 10 or first is not None
    return blocks and (first is None or first % 10 == 1) and (not above or above % 10 == 0 < above)


# What a whole line may be, the surest first. It is seen without blanks around it, and with
# typographic dashes, quotes and blanks made plain. `mark` is its first character that is no letter.
_KINDS: list[tuple[str | Callable[[str], object], str]] = [
    (r".*\r", MIXED_LINE_ENDS),
    (
        r">",
        "a header begins with a plain '>' at the very start of its line; remove what else is there",
    ),
    (
        r".*<(?:cls|eos|mask|pad|unk|null_1)>",
        "the model's own tokens do not stand in a FASTA file: <cls> and <eos> are added by "
        "themselves, and a masked residue cannot be given",
    ),
    (
        r".*(?:</?[A-Za-z!]|&#?\w+;)",
        "the line is written for a web page (HTML); save it as plain text, or download it again",
    ),
    (
        r".*(?:\\[nrt]|%0[AD])",
        "a line end is written out as letters; put a real one in the place of all of them",
    ),
    (
        r"(?:[;#!]+|//)\s*[A-Z*]{5,}$",
        "a comment, then {remove}; or residues after a mark, then remove the mark alone",
    ),
    (r"[;#!]|//|/\*", "the line looks like a comment or a mark; {remove}"),
    (
        r".*>",
        "two records may have run together; begin the header at the start of a line of its own",
    ),
    (HEADER, "the line looks like a header without its '>'; write one before it"),
    (
        rf"(?i)n/a$|(?!(?-i:[A-Z*.~_-]+)$).*\b(?:{_WORDS})\b",
        "{text} is text and no sequence; {remove}, or give the sequence",
    ),
    (
        rf"(?i)(?:H-|Ac-|NH2-)?(?:(?:{_CODES})[\s,.-]*){{2,}}(?:OH|NH2|COOH)?$",
        "this is three-letter code; write each residue as one letter",
    ),
    (
        r"[A-Za-z](?:[ ,-]+[A-Za-z*]){2,}[ ,]*$",
        f"the residues stand apart; remove what is between them, {_SAME}",
    ),
    (r"(?=.*\d)[\d\s.,+-]+$", "the line holds numbers and no residue; {remove}"),
    (_is_counted, f"numbers that count residues, and the blanks, can be removed: {_SAME}"),
    (
        r".*(?:\(.*\)|\[.*\]|\{.*\})",
        "what stands in brackets may be a modification, a choice or a repeat; write out the plain "
        "residues that are meant (ESM-2 knows no modified ones)",
    ),
    (
        rf"(?:{_ENDS[0]})-[A-Za-z]+(?:-\w+)?$|[A-Za-z]+-(?:{_ENDS[1]})$",
        "'-' may set off an end group, which is no residue: write the residues alone; "
        f"gaps of an alignment can be removed, {_SAME}",
    ),
    (
        r"[,;]+[A-Za-z*]+[,;]*$|[A-Za-z*]+[,;]+$",
        "{mark} may be punctuation, which can be removed, or separate chains: give those a record "
        "each, as joined they would be another protein",
    ),
    (
        r"[\"'`,;]+[A-Za-z*]+[\"'`,;]*$|[A-Za-z*]+[\"'`,;]+$",
        f"remove the punctuation around the sequence: {_SAME}",
    ),
    (r"(?=.*[\d_|])[^,;\s]+\s*[,;\t].*[A-Za-z*]{5}", f"the line looks like a table's; {_TABLE}"),
    (
        r"(?=[A-Z* ]+$|[a-z* ]+$)(?:[A-Za-z*]{10} +)+[A-Za-z*]{10}(?: +[A-Za-z*]{1,9})?$",
        f"the blanks between blocks of ten residues can be removed: {_SAME}",
    ),
    (
        r".*[ \t]",
        "of what blanks separate, join what is one protein, and give chains a record each; if it "
        "is text, {remove}",
    ),
    (
        r"[A-Z-]\.[A-Z]{2,}\.[A-Z-]$",
        "the line looks like a peptide with its neighbours in the protein; write only what stands "
        "between the dots, or * where they are stops",
    ),
    (
        r"[A-Za-z*]*(?:[:/|,;+\\]+[A-Za-z*]*)+$",
        "{mark} may separate chains; give each a record of its own, as joined they would be "
        "another protein",
    ),
]
_RULES = [
    (kind if callable(kind) else re.compile(kind, re.DOTALL).match, advice)
    for kind, advice in _KINDS
]


def is_three_letter_code(sequence: bytes) -> bool:
    """Tell whether a sequence is written as in ``MetLysThr``, all letters of which are residues."""
    return _THREE_LETTERS.fullmatch(sequence) is not None


def explain(header: bytes, body: bytes, line: int | None) -> str:
    r"""Say what in a record that was refused is no residue, where it is, and what to do.

    Parameters
    ----------
    header, body
        The record's header without its ``>``, and the lines below, which end with ``\n``.
    line
        Number of the header's line in the file, from 1; None for a text that is in no file.
    """
    fault = _FAULT.search(body)
    if fault is None:
        return "the sequence is written in three-letter code; write each residue as one letter"
    at, after = fault.span()  # a run of blanks, of which one is enough
    start = max(body.rfind(b"\n", 0, at) + 1, at - _CONTEXT)
    end = body.find(b"\n", after, after + _CONTEXT)
    rest = body[at : at + 1] + body[after : end if end >= 0 else after + _CONTEXT]
    written = (body[start:at] + rest).decode(errors="surrogateescape")
    residue = at - sum(body.count(byte, 0, at) for byte in (b"\n", b" ", b"\t")) + 1
    below = body.count(b"\n", 0, at)
    if not below and _PIR.match(header):
        advice = "the file looks like PIR (NBRF), where this line is a title; remove all of it"
    else:
        others = body[:start].strip() or (end >= 0 and body[end:].strip())
        advice = advise(written, alone=not others)
    place = f"at residue {residue:,}"
    if line is not None:
        place += f" (line {line + 1 + below:,})"
    return f"{_shown(written[at - start])} {place} is no amino acid; {advice}"


def advise(line: str, *, alone: bool = True) -> str:
    """Say what a line that holds a character that is no residue probably is, and what to do.

    Parameters
    ----------
    line
        Without its end; bytes that are not UTF-8 are surrogates, as ``surrogateescape`` makes them.
    alone
        Whether the record has no other line.
    """
    written = line.strip(" \t")
    text = _plain(written).strip(" \t")
    for is_such, advice in _RULES:
        if is_such(text):
            return advice.format(
                text=repr(text[:40]),
                mark=repr(next((c for c in text if not c.isalpha() and c != "*"), "")),
                remove="remove the record" if alone else "remove all of the line",
            )
    character = next(c for c in written if not (c.isascii() and (c.isalpha() or c == "*")))
    return _advise_on_character(character, text)


def _advise_on_character(character: str, text: str) -> str:
    plain = _plain(character)
    if unicodedata.category(character).startswith("M") and plain.strip(" \t"):
        return "it changes the letter before it; write the plain letter that is meant"
    if not plain.strip(" \t"):
        return f"it cannot be seen; remove it, {_SAME}"
    if plain.isalpha():
        return "write the plain letter, A to Z, that is meant"
    if plain[:1] == "." and "..." in text:
        return (
            f"gaps of an alignment can be removed, {_SAME}; where dots stand for residues that are "
            "left out, give the whole sequence"
        )
    if plain == ".":
        return (
            "it may be a stop, as gffread writes it: write * there (gffread -S does); gaps of an "
            f"alignment can be removed, {_SAME}"
        )
    if plain in ("-", "~", "_"):
        return (
            f"gaps of an alignment can be removed, {_SAME}; where it stands for a stop or an "
            "unknown residue, write * or X"
        )
    if character == "\x1a" and text.endswith(character):
        return f"it is an old mark for the end of a file; remove it, {_SAME}"
    if plain.isdigit():
        return f"numbers are no residues; {_ASK}"
    return _ASK


def _shown(character: str) -> str:
    """Return a character as it is, and if it is not ASCII by name; of no UTF-8, the byte."""
    if character.isascii():
        return f"character {character!r}"
    if _is_byte(character):
        meant = _meant(character)
        guess = "" if meant == _UNKNOWN else f", in Windows-1252 {_name(meant)}"
        return f"byte 0x{ord(character) - 0xDC00:02x} (not UTF-8{guess})"
    if character.isprintable():
        return f"character {character!r} ({_name(character)})"
    return f"character {_name(character)}"


def _name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def _is_byte(character: str) -> bool:
    return "\udc80" <= character <= "\udcff"


def _meant(character: str) -> str:
    """Return what a byte that is not UTF-8 most often is; any other character is itself."""
    if not _is_byte(character):
        return character
    return bytes([ord(character) - 0xDC00]).decode("cp1252", errors="replace")


def _plain(text: str) -> str:
    """Return text with the plain forms of dashes, quotes, blanks and marks; letters stay."""
    return text if text.isascii() else "".join(_plain_character(_meant(c)) for c in text)


def _plain_character(character: str) -> str:
    kind = unicodedata.category(character)
    if character.isascii() or kind.startswith("L"):
        return character
    if character in _DOTS:
        return "."
    if "\N{VARIATION SELECTOR-1}" <= character <= "\N{VARIATION SELECTOR-16}":
        return ""
    if kind == "Pd" or character == "\N{MINUS SIGN}":
        return "-"
    plain = {"Zs": " ", "Pi": '"', "Pf": '"', "Cf": "", "Zl": "", "Zp": "", "Cc": ""}
    return plain.get(kind, unicodedata.normalize("NFKC", character))
