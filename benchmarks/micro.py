"""Time what is ours: attention, outputs, packer, tokeniser, sharding, collation, store and merge.

    python -m benchmarks.micro --fasta uniprot_20k.fasta.gz --out benchmarks/results/micro.json

Every figure is a median over repeats, with the smallest and the largest. What a figure is set
against is measured in the same run, in turn with it.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch

from benchmarks.attention import measure_attention
from benchmarks.outputs import measure_outputs
from benchmarks.sample import EXAMPLE
from benchmarks.store import SHARDING, SHARDS, WIDTH, measure_store
from benchmarks.timing import timed
from packedesm import alphabet
from packedesm.device import hardware
from packedesm.files import write_json
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import FirstFitDecreasingPacker, plan_packs
from packedesm.paths import Paths
from packedesm.sequences.fasta import Record, read_records
from packedesm.sequences.shards import write_shards
from packedesm.versions import versions

ROOT = Path(__file__).resolve().parents[1]
SEED = 1
TOKEN_BUDGET = 16384

FULL = {
    "heads": 20,
    "packs": 8,
    "packer": [10**5, 10**6, 10**7],  # lengths
    "textbook": 10**5,  # the most lengths that textbook first-fit decreasing is given
    "fair_esm_records": 50,
    "megabytes": [50, 200],  # of FASTA
    "stored_rows": 100_000,
}
QUICK = {
    "heads": 1,
    "packs": 1,
    "packer": [10**3, 10**4],
    "textbook": 10**3,
    "fair_esm_records": 2,
    "megabytes": [0.5, 1],
    "stored_rows": 1000,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything, print it and write it as JSON; return the exit status."""
    options = parser().parse_args(arguments)
    logging.getLogger("packedesm").setLevel(logging.ERROR)
    sizes = QUICK if options.quick else FULL
    records = list(read_records(options.fasta))
    result: dict[str, Any] = {"conditions": conditions(options)}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for name, benchmark in {
            "attention": measure_attention,
            "outputs": measure_outputs,
            "packer": measure_packer,
            "tokeniser": measure_tokeniser,
            "sharding": measure_sharding,
            "collation": measure_collation,
            "store": measure_store,
        }.items():
            scratch = Path(folder) / name
            scratch.mkdir()
            result[name] = benchmark(records, scratch, sizes, options.repeats)
            shutil.rmtree(scratch)
            show(name, result[name])
    write_json(options.out, result)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(prog="benchmarks.micro", description=__doc__.split("\n")[0])
    results = ROOT / "benchmarks" / "results" / "micro.json"
    parser.add_argument("--fasta", type=Path, default=EXAMPLE, help="where records come from")
    parser.add_argument("--out", type=Path, default=results, help="the JSON to write")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return on what, with what and when the figures were taken."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "src", "benchmarks/*.py")),
        "device": hardware.Device.of(torch.device("cpu")).describe(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
        "fasta": options.fasta.name,
        "seed": SEED,
        "repeats": options.repeats,
        "quick": options.quick,
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def measure_packer(
    records: list[Record], _scratch: Path, sizes: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Pack lengths drawn from those of the records: ours, next-fit, and the textbook's loop."""
    known = (
        np.array([min(len(record.sequence), SHARDING.length.max_length) for record in records]) + 2
    )
    generator = np.random.default_rng(SEED)
    packer = FirstFitDecreasingPacker(TOKEN_BUDGET)
    rows = []
    for count in sizes["packer"]:
        lengths = generator.choice(known, count)
        ways = {"packedesm": partial(packer.pack, lengths), "next_fit": partial(next_fit, lengths)}
        fills = {"packedesm": packer.pack(lengths).fill, "next_fit": _fill(next_fit(lengths))}
        if count <= sizes["textbook"]:
            ways["textbook"] = partial(textbook, lengths)
            fills["textbook"] = _fill(textbook(lengths))
        row = {"lengths": count, "token_budget": TOKEN_BUDGET, "fill": fills}
        rows.append(row | timed(repeats, **ways))
        if "textbook" in ways:
            ours, other = rows[-1]["packedesm"], rows[-1]["textbook"]
            rows[-1]["textbook_over_packedesm"] = other["seconds"] / ours["seconds"]
    return rows


def textbook(lengths: np.ndarray) -> list[int]:
    """First-fit decreasing as textbooks have it: the tokens in each pack."""
    room: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        for pack, free in enumerate(room):
            if length <= free:
                room[pack] -= length
                break
        else:
            room.append(TOKEN_BUDGET - length)
    return [TOKEN_BUDGET - free for free in room]


def next_fit(lengths: np.ndarray) -> list[int]:
    """Fill one pack after another in input order: the tokens in each pack."""
    packs = [0]
    for length in lengths.tolist():
        if packs[-1] + length > TOKEN_BUDGET:
            packs.append(0)
        packs[-1] += length
    return packs


def _fill(packs: list[int]) -> float:
    return sum(packs) / (len(packs) * TOKEN_BUDGET)


def measure_tokeniser(
    records: list[Record], _scratch: Path, sizes: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Tokenise one record after another, and the first of them as fair-esm does."""
    theirs = esm.data.Alphabet.from_architecture("ESM-1b")
    sequences = [record.sequence for record in records]
    few = [sequence.decode() for sequence in sequences[: sizes["fair_esm_records"]]]
    result = timed(
        repeats,
        packedesm=lambda: [alphabet.encode(sequence) for sequence in sequences],
        fair_esm=lambda: [theirs.encode(text) for text in few],
    )
    for name, texts in {"packedesm": sequences, "fair_esm": few}.items():
        residues = sum(map(len, texts))
        result[name] |= _rate("residues", residues, result[name])
    return result


def _rate(unit: str, amount: float, times: dict[str, float]) -> dict[str, float]:
    return {unit: amount, f"{unit}_per_second": amount / times["seconds"]}


def measure_sharding(
    records: list[Record], scratch: Path, sizes: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Shard files of two sizes, with every check and digest, and say what memory that takes."""
    rows = []
    for megabytes in sizes["megabytes"]:
        path = scratch / "in.fasta"
        count = write_fasta(records, path, megabytes)
        size = path.stat().st_size / 1e6
        paths = Paths(scratch / "out")
        shard = partial(write_shards, [path], paths, SHARDING, shards=SHARDS, width=WIDTH)
        row = timed(repeats, sharding=shard, after=partial(shutil.rmtree, paths.root))
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # with memory of its own
            before, peak = other.submit(_memory_of, shard).result()
        shutil.rmtree(paths.root)
        row["sharding"] |= {
            "megabytes_per_second": size / row["sharding"]["seconds"],
            "megabytes_per_cpu_second": size / row["sharding"]["cpu_seconds"],
            "memory_before_bytes": before,
            "memory_peak_bytes": peak,
        }
        rows.append({"records": count, "megabytes": size, **row})
    return rows


def write_fasta(records: list[Record], path: Path, megabytes: float) -> int:
    """Repeat the records with other ids and one other residue each, 60 residues a line."""
    copy = count = written = 0
    with path.open("wb") as handle:
        while written < megabytes * 1e6:
            for record in records:
                # The first letters count the copies, so that none repeats another.
                mark = bytes(alphabet.RESIDUES[copy // 20**place % 20] for place in range(3))
                sequence = mark + record.sequence[3:]
                lines = [sequence[i : i + 60] for i in range(0, len(sequence), 60)]
                header = f">{record.id}_{copy} {record.description}".encode()
                written += handle.write(b"\n".join([header, *lines, b""]))
                count += 1
            copy += 1
    return count


def _memory_of(function: Callable[[], Any]) -> tuple[int, int]:
    """Return the resident bytes of this process before `function`, and at its peak."""
    before = _memory("VmRSS")
    function()
    return before, _memory("VmHWM")


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def measure_collation(
    records: list[Record], scratch: Path, _sizes: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Read and collate every pack of one shard, in this process."""
    fasta = scratch / "in.fasta"
    write_fasta(records, fasta, 0.1)
    paths = Paths(scratch / "out")
    write_shards([fasta], paths, SHARDING, shards=1, width=WIDTH)
    dataset = SequenceDataset(paths.shard_fasta(0), SHARDING.length)
    packs = plan_packs(dataset.tokens, TOKEN_BUDGET)
    collate = VarlenCollator()
    result = timed(
        repeats,
        collation=lambda: [collate(dataset.__getitems__(packs[i])) for i in range(len(packs))],
    )
    result["collation"] |= _rate("tokens", int(dataset.tokens.sum()), result["collation"])
    return result


def show(name: str, result: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Print the figures of one benchmark, a line each."""
    for row in result if isinstance(result, list) else [result]:
        facts = [
            f"{key} {value}" if isinstance(value, str) else f"{key} {value:,.5g}"
            for key, value in row.items()
            if not isinstance(value, dict)
        ]
        print(name, *facts, sep="  ")
        for key, figures in row.items():
            if isinstance(figures, dict):
                print(f"  {key:12}", *(f"{k} {v:,.4g}" for k, v in figures.items()), sep="  ")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
