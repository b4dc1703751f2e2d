"""The TSV tables of a run: packs.tsv, packing.tsv and throughput.tsv."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from packedesm.files import write_text
from packedesm.paths import Layout

PACKING_COLUMNS = (
    "shard",
    "records",
    "packs",
    "tokens",
    "token_budget",
    "fill",
    "padded_tokens_arrival",
    "padded_tokens_sorted",
    "padding_avoided_arrival",
    "padding_avoided_sorted",
)
THROUGHPUT_COLUMNS = (
    "shard",
    "device",
    "records",
    "residues",
    "tokens",
    "seconds",
    "sequences_per_second",
    "residues_per_second",
    "tokens_per_second",
    "tflops",
    "matmul_ceiling_tflops",
    "mfu",
    "forward_share",
    "wait_share",
    "setup_seconds",
    "gpu_utilisation_percent",
    "energy_j",
    "restarts",
)
PACK_TYPES = {
    "pack": pa.int64(),
    "records": pa.int64(),
    "residues": pa.int64(),
    "tokens": pa.int64(),
    "fill": pa.float64(),
    "wait_seconds": pa.float64(),
    "forward_seconds": pa.float64(),
    "finished_seconds": pa.float64(),
    "pieces": pa.int64(),
    "float32_records": pa.int64(),
}


def write_tables(layout: Layout, metrics: dict[str, Any]) -> None:
    """Write packing.tsv and throughput.tsv: a line per shard, and one for all of them."""
    for name, path, columns in (
        ("packing", layout.packing, PACKING_COLUMNS),
        ("throughput", layout.throughput, THROUGHPUT_COLUMNS),
    ):
        rows = [*metrics[name]["shards"], metrics[name]["all"]]
        write_table(path, columns, rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `columns` of `rows` under their names; what is None becomes an empty cell."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[column]) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def read_packs(path: Path) -> dict[str, np.ndarray]:
    """Read packs.tsv as one array per column, packs in the order in which they finished."""
    options = csv.ConvertOptions(column_types=PACK_TYPES)
    table = csv.read_csv(
        path, parse_options=csv.ParseOptions(delimiter="\t"), convert_options=options
    )
    columns = {name: table[name].to_numpy() for name in PACK_TYPES}
    order = np.argsort(columns["finished_seconds"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
