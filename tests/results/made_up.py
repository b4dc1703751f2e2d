"""Finished results with vectors that a test makes up."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from packedesm.files import write_record
from packedesm.paths import Paths
from packedesm.sequences.index import READ_SCHEMA, write_index
from tests.typed import checkpoint


def write_results(
    folder: Path,
    values: np.ndarray,
    sequences: list[str] | None = None,
    *,
    array: str = "mean",
    ids: list[str] | None = None,
    copied: bool = True,
    sha256: str = "0" * 64,
) -> Path:
    """Write an index, one array and a manifest; `sequences` that repeat are duplicates.

    Parameters
    ----------
    copied
        Whether duplicates have the vector of the first, which they must have in `values`.
    sha256
        Of the model's weights.
    """
    folder.mkdir(parents=True)
    count = len(values)
    sequences = sequences or [f"M{row}" for row in range(count)]
    first: dict[str, int] = {}
    duplicate_of = np.full(count, -1)
    for row, sequence in enumerate(sequences):
        if (of := first.setdefault(sequence, row)) != row and copied:
            duplicate_of[row] = of
    columns = {
        "row": range(count),
        "id": ids or [f"p{row}" for row in range(count)],
        "description": [""] * count,
        "file": [0] * count,
        "record": range(count),
        "length": [1] * count,
        "embedded_length": [1] * count,
        "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in sequences],
        "flags": [""] * count,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in READ_SCHEMA]
    paths = Paths(folder)
    write_index(paths.index, [pa.table(arrays, schema=READ_SCHEMA)], duplicate_of)
    np.save(folder / f"{array}.npy", values)
    made = {f"{array}.npy": {"shape": list(values.shape), "dtype": str(values.dtype)}}
    model = checkpoint(sha256=sha256).as_json()
    write_record(paths.manifest, {"format": 2, "records": count, "model": model, "arrays": made})
    return folder
