"""The reference vectors of sampled records, kept in two files: facts, and numbers; without torch.

The first part is there before a job starts, and each job compares itself with it. The rest may be
computed beside the jobs. Together they are what the merged results are compared with.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from packedesm.errors import Fault, plural
from packedesm.files import (
    RECORD_DIGEST,
    atomic_path,
    file_digest,
    read_record,
    reading,
    write_record,
)
from packedesm.options import ReferenceOptions
from packedesm.paths import Paths

FIRST, REST = PARTS = ("first", "rest")


@dataclass(frozen=True)
class Protein:
    """A sampled record, and what its arrays should hold."""

    row: int
    id: str
    length: int  # residues
    embedded_length: int
    sequence: str  # all residues, as the shard holds them
    # By the name of the array, float64, as `packedesm.reference.expected` has them.
    vectors: dict[str, np.ndarray]
    positions: tuple[int, ...] = ()  # of residues, from 0, that masked marginals are there for
    left_out: tuple[str, ...] = ()  # arrays whose reference does not fit into memory

    @property
    def facts(self) -> dict[str, Any]:
        """Row, id and lengths, as plain values."""
        return {key: getattr(self, key) for key in ("row", "id", "length", "embedded_length")}


@dataclass(frozen=True)
class Drawn:
    """How many records are verified, and why so many."""

    sequences: int
    records: int  # that there are
    asked: int  # most to verify
    share: float  # of the operations of the run that their unmasked passes take
    most_share: float | None  # that they were bounded to; None if they were not

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Drawn:
        """Return what `dataclasses.asdict` gave."""
        return cls(**told)

    def in_words(self) -> str:
        """Return how many of how many, and of a bound which."""
        said = f"{self.sequences:,} of {plural(self.records, 'protein')}"
        if self.most_share is None:
            return said
        but = f" and at least {self.sequences}" if self.share > self.most_share else ""
        return (
            f"{said}; asked for {self.asked}, limited to {100 * self.most_share:.0f}% of the run's "
            f"operations{but}"
        )


@dataclass(frozen=True)
class ReferenceVectors:
    """One part of the sample, computed."""

    proteins: tuple[Protein, ...]
    replaced: tuple[dict[str, Any], ...]  # see `packedesm.reference.sample.Sample.replace`
    program: str  # what computed them
    seconds: float
    drawn: Drawn | None = None  # None where nothing is verified

    def write(
        self, paths: Paths, part: str, options: ReferenceOptions, checkpoint_sha256: str
    ) -> None:
        """Write both files of a part, atomically; the facts, which name the other's digest, last.

        Parameters
        ----------
        options, checkpoint_sha256
            What the vectors are those of.
        """
        flat = [array.ravel() for protein in self.proteins for array in protein.vectors.values()]
        numbers = paths.reference_numbers(part)
        held = io.BytesIO()  # np.save does not say why a disk takes no more
        np.save(held, np.concatenate(flat) if flat else np.zeros(0))
        with atomic_path(numbers) as temporary:
            temporary.write_bytes(held.getbuffer())
        facts = {
            "asked": options.as_config() | {"checkpoint_sha256": checkpoint_sha256},
            "program": self.program,
            "proteins": [_told(protein) for protein in self.proteins],
            "replaced": list(self.replaced),
            "seconds": self.seconds,
            "drawn": self.drawn and asdict(self.drawn),
            "sha256": file_digest(numbers),
            "made_from": [read_record(paths.sharding)[RECORD_DIGEST]],
        }
        write_record(paths.reference(part), facts)

    @classmethod
    def read(
        cls, paths: Paths, part: str, options: ReferenceOptions, checkpoint_sha256: str
    ) -> ReferenceVectors:
        """Read a part.

        Parameters
        ----------
        options, checkpoint_sha256
            What the vectors are to be those of.

        Raises
        ------
        Damaged
            If a file is not as it was written.
        Fault
            If they are of other records, weights or options.
        """
        path = paths.reference(part)
        facts = read_record(path)
        asked = options.as_config() | {"checkpoint_sha256": checkpoint_sha256}
        made_from = [read_record(paths.sharding)[RECORD_DIGEST]]
        if (facts["asked"], facts["made_from"]) != (asked, made_from):
            raise Fault(f"{path}: was made from other files than are there; delete it, run again")
        numbers = paths.reference_numbers(part)
        with reading(numbers, sha256=facts["sha256"]):
            flat = np.load(numbers)
        place, proteins = 0, []
        for told in facts["proteins"]:
            vectors = {}
            for name, shape in told.pop("shapes").items():
                count = math.prod(shape)
                vectors[name] = flat[place : place + count].reshape(shape)
                place += count
            told |= {name: tuple(told[name]) for name in ("positions", "left_out")}
            proteins.append(Protein(**told, vectors=vectors))
        drawn = Drawn.of(told) if (told := facts.get("drawn")) else None
        seconds = facts["seconds"]
        return cls(tuple(proteins), tuple(facts["replaced"]), facts["program"], seconds, drawn)


def _told(protein: Protein) -> dict[str, Any]:
    """Return what the facts say of a protein: all but its numbers, which lie in the other file."""
    shapes = {name: list(array.shape) for name, array in protein.vectors.items()}
    lists = {"positions": list(protein.positions), "left_out": list(protein.left_out)}
    return {**protein.facts, "sequence": protein.sequence, **lists, "shapes": shapes}
