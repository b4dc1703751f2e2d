"""The proteins to train and to evaluate on, and the split that keeps relatives together."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from packedesm.sequences.fasta import read_records

IDENTITY = 0.3
COVERAGE = 0.5  # of the target (coverage mode 1)
# Connected components (cluster mode 1): greedy clusters may lie next to each other.
CLUSTERING = f"--min-seq-id {IDENTITY} -c {COVERAGE} --cov-mode 1 --cluster-mode 1 -s 7.5".split()
SEARCH = [
    "-s",
    "7.5",
    "-e",
    "0.001",
    "--max-seqs",
    "50",
    "--format-output",
    "query,fident,qcov,tcov",
]


class Entry(NamedTuple):
    """One UniProt protein."""

    accession: str
    name: str  # the recommended name: the header's text up to its first field, such as OS=
    sequence: bytes


class HeldOut(NamedTuple):
    """What is known of a protein that training must not see."""

    cluster: str  # accession of its representative
    relatives: str  # see `find_relatives`


def read_entries(fasta: Path) -> list[Entry]:
    """Return the proteins of a UniProt FASTA in input order, identical sequences once."""
    entries = {}
    for record in read_records(fasta):
        if record.sequence and record.sequence not in entries:
            accession = record.id.split("|")[1] if record.id.count("|") == 2 else record.id
            name = re.split(r" (?:OS|OX|GN|PE|SV)=", record.description)[0]
            entries[record.sequence] = Entry(accession, name, record.sequence)
    return list(entries.values())


def cluster(entries: Iterable[Entry], threads: int) -> dict[str, str]:
    """Return each accession's cluster, named by its representative, at 30% identity.

    Needs the program ``mmseqs`` (MMseqs2).
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        proteins = _write_fasta(folder / "proteins.fasta", entries)
        _mmseqs("easy-cluster", proteins, folder / "c", folder / "work", *CLUSTERING, threads)
        lines = (folder / "c_cluster.tsv").read_text().splitlines()
    return {member: name for name, member in (line.split("\t") for line in lines)}


def hold_out(clusters: dict[str, str], share: float, seed: int) -> dict[str, str]:
    """Return whole clusters, drawn at random, that hold about `share` of all proteins.

    A cluster that would overshoot the share by more than a tenth of it is passed over.

    Returns
    -------
    dict
        Accession to cluster.
    """
    members: dict[str, list[str]] = {}
    for accession in sorted(clusters):
        members.setdefault(clusters[accession], []).append(accession)
    names = sorted(members)
    wanted = share * len(clusters)
    held_out: dict[str, str] = {}
    for index in np.random.default_rng(seed).permutation(len(names)):
        group = members[names[index]]
        if len(held_out) + len(group) <= 1.1 * wanted:
            held_out |= dict.fromkeys(group, names[index])
        if len(held_out) >= wanted:
            break
    return held_out


def find_relatives(
    held_out: Iterable[Entry], training: Iterable[Entry], threads: int
) -> dict[str, str]:
    """Return what relatives MMseqs2 finds in training for each held-out accession.

    Clusters are found by quick steps that miss pairs, so this looks again, pair by pair.

    Returns
    -------
    dict
        ``close`` with a hit of at least 30% identity over half of either protein, ``remote`` with
        any other hit (E at most 0.001), ``none`` without.
    """
    found = {entry.accession: "none" for entry in held_out}
    with TemporaryDirectory() as name:
        folder = Path(name)
        queries = _write_fasta(folder / "held_out.fasta", held_out)
        targets = _write_fasta(folder / "training.fasta", training)
        _mmseqs("easy-search", queries, targets, folder / "hits", folder / "work", *SEARCH, threads)
        hits = [line.split("\t") for line in (folder / "hits").read_text().splitlines()]
    for accession, identity, *coverages in hits:
        close = float(identity) >= IDENTITY and max(map(float, coverages)) >= COVERAGE
        if close or found[accession] == "none":
            found[accession] = "close" if close else "remote"
    return found


def write_held_out(path: Path, clusters: dict[str, str], relatives: dict[str, str]) -> None:
    """Write accession, cluster and relatives of every held-out protein, tab-separated."""
    rows = sorted((name, accession) for accession, name in clusters.items())
    lines = [f"{accession}\t{name}\t{relatives[accession]}" for name, accession in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["accession\tcluster\trelatives", *lines]) + "\n")


def read_held_out(path: Path) -> dict[str, HeldOut]:
    """Return what `write_held_out` wrote, by accession."""
    rows = (line.split("\t") for line in path.read_text().splitlines()[1:])
    return {accession: HeldOut(*row) for accession, *row in rows}


def _write_fasta(path: Path, entries: Iterable[Entry]) -> Path:
    path.write_bytes(b"".join(b">%s\n%s\n" % (e.accession.encode(), e.sequence) for e in entries))
    return path


def _mmseqs(*arguments: object) -> None:
    *arguments, threads = arguments
    command = ["mmseqs", *map(str, arguments), "--threads", str(threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
