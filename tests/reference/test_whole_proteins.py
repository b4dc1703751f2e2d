"""Verification masks every residue of few proteins, and what is wrong with masks is seen."""

from dataclasses import replace

import pytest

from packedesm import alphabet
from packedesm.cli import main
from packedesm.embedding.masked import CopyWriter
from packedesm.esm2.registry import TINY
from packedesm.files import read_record
from packedesm.packing.copies import MaskedCopies
from packedesm.paths import Paths
from packedesm.reference import whole_proteins
from packedesm.reference.whole_proteins import WholeProteins
from tests.typed import policy

LENGTHS = [300, 90, 5, 700, 150, 6, 6000]


def records(lengths, first=0):
    return [
        {"row": first + row, "length": n, "embedded_length": min(n, 1022)}
        for row, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("run_tokens", "one", "rows"),
    [
        (0, False, {2, 5}),  # 96 passes, whatever the run is, are not 101
        (20 * (5 * 7 + 6 * 8 + 90 * 92), False, {1, 2, 5}),
        (20 * (5 * 7 + 6 * 8 + 90 * 92) - 1, False, {2, 5}),
        (10**9, False, {1, 2, 4, 5}),  # 512 passes are most
        (0, True, {2, 5}),
    ],
)
def test_of_the_shortest_so_many_as_are_a_twentieth_of_the_run(run_tokens, one, rows):
    wholes = WholeProteins(policy(), run_tokens, one=one)
    assert wholes.take(records(LENGTHS)) == rows


@pytest.mark.parametrize(("shortest", "rows"), [(97, {0}), (512, {0}), (513, set())])
def test_one_is_taken_where_nothing_else_tells_of_masks(shortest, rows):
    assert WholeProteins(policy(), 0, one=True).take(records([shortest, 700])) == rows
    assert WholeProteins(policy(), 0, one=False).take(records([shortest, 700])) == set()


def test_what_could_not_be_done_makes_room_for_another():
    wholes = WholeProteins(policy(), 0, one=False)
    assert wholes.take(records([60, 50])) == {1}
    assert wholes.take(records([40], first=2)) == {2}
    wholes.drop(1)
    assert wholes.take(records([45], first=3)) == {3}


def _masked_elsewhere(monkeypatch):
    some = MaskedCopies.some

    def beside(self, copies):
        found = some(self, copies)
        return [copy._replace(masked=min(copy.masked + 1, copy.window[1] - 1)) for copy in found]

    monkeypatch.setattr(MaskedCopies, "some", beside)


def _other_mask(monkeypatch):
    monkeypatch.setattr(alphabet, "MASK", alphabet.TOKENS.index("X"))


def _copies_swapped(monkeypatch):
    write = CopyWriter.write
    monkeypatch.setattr(
        CopyWriter, "write", lambda self, pack: write(self, replace(pack, rows=pack.rows[::-1]))
    )


FAULTS = {"elsewhere": _masked_elsewhere, "token": _other_mask, "swapped": _copies_swapped}


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        *(("masked_marginals", fault) for fault in FAULTS),
        *(("pseudo_perplexity", fault) for fault in ("elsewhere", "swapped")),
    ],
)
def test_whatever_is_wrong_with_masks_is_seen(tmp_path, checkpoints, monkeypatch, output, fault):
    """The least is compared: a few places of each, or the one that is shortest."""
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKVLAWGIRE\n>b\nWYVTSRQPNMLKIHGFEDCA\n>c\nWACDKLH\n")
    monkeypatch.setattr(whole_proteins, "_ALWAYS", 0)
    FAULTS[fault](monkeypatch)
    asked = ["--outputs", output, "--model", TINY, "--checkpoints", str(checkpoints)]
    assert main(["embed", str(fasta), "-o", str(tmp_path / "out"), *asked]) == 2
    verification = read_record(Paths(tmp_path / "out").verification)
    assert verification["passed"] is False
    assert len(verification["records"]) == (1 if output == "pseudo_perplexity" else 3)
