"""A small run to export, and what a run does not make of it yet."""

import shutil
from pathlib import Path

import numpy as np

import packedesm
from packedesm.cli import main
from packedesm.esm2.registry import TINY
from packedesm.files import file_digest, read_record, write_record
from packedesm.paths import Paths

# id, description, sequence: ids that some format cannot hold, letters that few tools know.
LONG = "x" * 300
RECORDS = (
    ("plain", "first of  all", "MKTAYIAKQRQISFVKSHFSRQ"),
    ("a/b", "", "MSILVTRPSPAGEELVSRLRT"),
    ("A/B", "", "QNKVIISGADLQ"),
    ("../out", "", "MKVLAAGIVG"),
    ("x.pt/y", "", "MLSDEDFKAVFG"),
    ("/root", "", "GGSAWLLC"),
    ("twice", "once", "MAHHHHHHVGT"),
    ("twice", "and again", "MAHHHHHHVGT"),
    (LONG, "", "MDTSRVQPIKLA"),
    ("rare", "U and O", "MUOBZXKR"),
    ("missing", "", "NA"),
    ("single", "", "W"),
    ("001", "", "M" + 7 * "ACDEFGHIKL"),  # longer than the limit
)
LIMIT = 50


def embedded(folder: Path, checkpoints: Path) -> None:
    """Embed the records into the folder ``out`` of `folder`."""
    fasta = folder / "in.fasta"
    texts = (f">{name} {description}\n{sequence}\n" for name, description, sequence in RECORDS)
    fasta.write_text("".join(texts))
    options = ["--model", TINY, "--checkpoints", str(checkpoints)]
    options += ["--outputs", "cls,mean,residue"]
    options += ["--max-length", str(LIMIT), "--verify-sequences", "2"]
    assert main(["embed", str(fasta), "-o", str(folder / "out"), *options]) == 0


def copied(results: Path, folder: Path) -> Path:
    """Return a copy of results, to be changed."""
    return Path(shutil.copytree(results, folder / "copy"))


def add_array(results: Path, name: str, values: np.ndarray) -> None:
    """Put one more array into results, as if the run had made it."""
    manifest = read_record(Paths(results).manifest)
    path = results / f"{name}.npy"
    np.save(path, values)
    output, _, layer = name.partition(".layer")
    described = {"shape": list(values.shape), "dtype": str(values.dtype), "output": output}
    described |= {"layer": int(layer) if layer else None, "columns": None}
    manifest["arrays"][path.name] = described
    manifest["sha256"][path.name] = file_digest(path)
    write_record(Paths(results).manifest, manifest)


def add_contacts(results: Path) -> list[np.ndarray]:
    """Put made-up contacts into results; return the (L, L) of each record."""
    lengths = np.diff(packedesm.open(results).offsets("residue"))
    random = np.random.default_rng(5)
    maps = [random.random((length, length)).astype(np.float16) for length in lengths]
    maps = [np.triu(contacts) + np.triu(contacts, 1).T for contacts in maps]
    triangles = [contacts[np.triu_indices(len(contacts))] for contacts in maps]
    offsets = np.concatenate(([0], np.cumsum([len(triangle) for triangle in triangles])))
    np.save(results / "contacts_offsets.npy", offsets.astype(np.int64))
    add_array(results, "contacts", np.concatenate(triangles))
    return maps


def export(results: Path, *arguments: str) -> int:
    """Run the command."""
    return main(["export", str(results), *arguments])


def id_table(path: Path) -> dict[int, tuple[str, str]]:
    """Return what a table of ids says: id and key by row."""
    head, *lines = path.read_text().split("\n")[:-1]
    assert head == "row\tid\tkey"
    cells = (line.split("\t") for line in lines)
    return {int(row): (name, key) for row, name, key in cells}
