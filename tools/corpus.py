"""The proteins to train and to evaluate on, and the split that keeps relatives together."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from packedesm.fasta import read_records

IDENTITY = 0.3
# Connected components (mode 1) over alignments that cover half of the target (coverage mode 1):
# two proteins of different clusters have no hit, where greedy clusters may have neighbours.
CLUSTERING = ("--min-seq-id", str(IDENTITY), "-c", "0.5", "--cov-mode", "1")
CLUSTERING += ("--cluster-mode", "1", "-s", "7.5")


class Entry(NamedTuple):
    """One UniProt protein."""

    accession: str
    name: str  # the recommended name: the header's text up to its first field, such as OS=
    sequence: bytes


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
    with TemporaryDirectory() as folder:
        fasta = Path(folder) / "proteins.fasta"
        fasta.write_bytes(
            b"".join(b">%s\n%s\n" % (entry.accession.encode(), entry.sequence) for entry in entries)
        )
        command = ["mmseqs", "easy-cluster", fasta, f"{folder}/clusters", f"{folder}/work"]
        command += [*CLUSTERING, "--threads", str(threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = Path(f"{folder}/clusters_cluster.tsv").read_text().splitlines()
    return {member: name for name, member in (line.split("\t") for line in lines)}


def hold_out(clusters: dict[str, str], share: float, seed: int) -> dict[str, str]:
    """Return whole clusters, drawn at random, that hold about `share` of all proteins.

    A cluster that would overshoot the share by more than a tenth of it is passed over.
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


def write_held_out(path: Path, held_out: dict[str, str]) -> None:
    """Write accession and cluster of every protein that is held out, tab-separated."""
    rows = sorted(held_out.items(), key=lambda item: (item[1], item[0]))
    lines = ["accession\tcluster", *(f"{accession}\t{name}" for accession, name in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read_held_out(path: Path) -> dict[str, str]:
    """Return what `write_held_out` wrote: accession to cluster."""
    return dict(line.split("\t") for line in path.read_text().splitlines()[1:])
