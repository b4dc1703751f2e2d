"""Which formats there are, what each holds and needs; a module beside this one writes each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packedesm.errors import UserError, quote
from packedesm.outputs import Array
from packedesm.results.exports.keys import WHITESPACE, PathRule, Rule

if TYPE_CHECKING:
    from packedesm.results.exports.source import Source


POSITION = "position"


class Writer(Protocol):
    """What the module of a format has."""

    def files(self, arrays: Sequence[Array]) -> dict[str, list[Array]]:
        """Return the names of the files, or folders, that are made, and which arrays go into each.

        The first is the one that users look for. A file of one format has one name in every run.
        """

    def write(self, path: Path, source: Source) -> None:
        """Write the arrays of `source` to the new file or folder `path`, block by block.

        Whatever it fails with, `path` is removed. A full disk is an OSError with its number.
        """

    def check(self, path: Path, source: Source, rows: Sequence[int]) -> None:
        """Read some rows back, as the readers of this format do; ValueError if they are not those.

        `rows` are among `source.rows`, ascending.
        """


@dataclass(frozen=True)
class Format:
    """One format.

    Parameters
    ----------
    name
        On the command line and in the configuration.
    says
        What it is, in a line of help.
    module
        Beside this one, see `Writer`.
    holds
        The outputs that it can hold.
    default
        Those of them that it takes if nobody says which; where none of them was made, the first
        that it holds.
    rule
        Which ids it can hold; None for all, and each as often as there are.
    keys
        What ``--keys`` may be; the first is what it is if nobody says. `POSITION` where records
        have no names, and the table of ids tells whose each is.
    needs
        Modules that must be there, by the names that Python imports.
    install
        What pip is asked for where they are missing.
    sequences
        Whether the sequences are needed, which results do not hold.
    several
        Whether ``-o`` always names a folder.
    every_layer
        Whether it takes those of every layer if nobody says which, and not of the last alone.
    """

    name: str
    says: str
    module: str
    holds: tuple[str, ...]
    default: tuple[str, ...]
    rule: Rule | None
    keys: tuple[str, ...] = ("id",)
    needs: tuple[str, ...] = ()
    install: str = "packedesm"
    sequences: bool = False
    several: bool = False
    every_layer: bool = False

    def writer(self) -> Writer:
        """Return the module that writes it.

        Raises
        ------
        UserError
            If something that it needs is not installed.
        """
        self.expect_installed()
        return import_module(f"packedesm.results.exports.{self.module}")

    def expect_installed(self) -> None:
        """Raise UserError, with what to do, if something that it needs is not installed."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise UserError(
                f"exports of format {self.name} need {', '.join(missing)}; "
                f"pip install '{self.install}'"
            )

    def choose(self, there: Iterable[str], asked: Sequence[str] = ()) -> list[Array]:
        """Return the arrays that are exported.

        Parameters
        ----------
        there
            The names of all arrays of the results, or of those that a run will make.
        asked
            The names of those that are asked for; none for what the format takes by itself.

        Raises
        ------
        UserError
            If one is not there, or is nothing that this format holds.
        """
        arrays = {name: Array.named(name) for name in there}
        held = [array for array in arrays.values() if array.output.name in self.holds]
        names = ", ".join(arrays)
        for name in asked:
            if name not in arrays:
                raise UserError(f"export: {quote(name)} was not made; these results hold {names}")
            if arrays[name] not in held:
                raise UserError(
                    f"export: format {self.name} holds no {name}; it holds {', '.join(self.holds)}"
                )
        if asked:
            return [arrays[name] for name in dict.fromkeys(asked)]
        if not held:
            raise UserError(
                f"export: format {self.name} holds {', '.join(self.holds)}, and these results "
                f"have {names}"
            )
        usual = [array for array in held if array.output.name in self.default]
        if self.every_layer:
            return usual or held[:1]
        last = [array for array in usual if array.layer is None]
        return last or usual[:1] or held[:1]


_VECTORS = ("mean", "cls", "max")
_LINES = ("residue", "logits", "log_likelihood", "masked_marginals")

FORMATS = {
    format.name: format
    for format in (
        Format(
            "h5",
            "HDF5, one dataset per protein, as UniProt's files and as ProtSpace reads them",
            "h5",
            holds=(*_VECTORS, *_LINES),
            default=("mean", "residue"),
            rule=Rule(forbidden="/\0", names=(".",)),
            keys=("id", "accession", "biotrainer"),
            needs=("h5py",),
        ),
        Format(
            "skbio",
            "HDF5 as scikit-bio reads it (format embed), with the sequences",
            "skbio",
            holds=(*_VECTORS, "residue"),
            default=("mean", "residue"),
            rule=None,
            keys=(POSITION,),
            needs=("h5py",),
            sequences=True,
        ),
        Format(
            "parquet",
            "one table for pandas, polars, duckdb and R: the index, and the vectors in columns",
            "parquet",
            holds=(*_VECTORS, "pseudo_perplexity"),
            default=(*_VECTORS, "pseudo_perplexity"),
            rule=None,
        ),
        Format(
            "pt",
            "a folder with a file of tensors for each protein, as fair-esm's esm-extract writes it",
            "esm_extract",
            holds=("mean", "residue", "cls", "contacts"),
            default=("mean", "residue", "cls", "contacts"),
            rule=PathRule(),
            several=True,
            every_layer=True,
        ),
        Format(
            "h5ad",
            "AnnData, for scanpy",
            "anndata",
            holds=(*_VECTORS, "pseudo_perplexity"),
            default=(*_VECTORS, "pseudo_perplexity"),
            rule=Rule(forbidden="\0"),
            needs=("h5py",),
            every_layer=True,
        ),
        Format(
            "faiss",
            "a folder with a matrix in float32, the ids in row order and, where FAISS is "
            "installed, an exact index of cosines",
            "faiss",
            holds=_VECTORS,
            default=("mean",),
            rule=None,  # a row is its number
            several=True,
        ),
        Format(
            "plm-blast",
            "a folder with a database, or queries, of pLM-BLAST",
            "plm_blast",
            holds=("residue",),
            default=("residue",),
            rule=Rule(forbidden=WHITESPACE),
            several=True,
            sequences=True,
        ),
    )
}
