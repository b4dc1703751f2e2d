"""The TSV tables of a run: packing.tsv and throughput.tsv."""

from typing import Any

from packedesm.files import write_table
from packedesm.paths import Paths

PACKING_COLUMNS = (
    "shard",
    "records",
    "packs",
    "tokens",
    "token_budget",
    "fill",
    "masked_packs",
    "masked_tokens",
    "masked_fill",
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
    "matmul_peak_tflops",
    "mfu",
    "forward_share",
    "wait_share",
    "masked_passes",
    "masked_tokens",
    "masked_seconds",
    "masked_passes_per_second",
    "masked_tokens_per_second",
    "setup_seconds",
    "gpu_utilisation_percent",
    "energy_j",
    "restarts",
)


def write_tables(paths: Paths, metrics: dict[str, Any]) -> None:
    """Write packing.tsv and throughput.tsv: a line per shard, and one for all of them."""
    for name, path, columns in (
        ("packing", paths.packing, PACKING_COLUMNS),
        ("throughput", paths.throughput, THROUGHPUT_COLUMNS),
    ):
        rows = [*metrics[name]["shards"], metrics[name]["all"]]
        write_table(path, columns, rows)
