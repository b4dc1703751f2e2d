"""Arrays of every kind, put into the results of a small run that made but some of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from packedesm.files import file_digest, read_record, write_record
from packedesm.outputs import Array
from packedesm.paths import Paths


def with_arrays(finished: Path, folder: Path, *names: str) -> Path:
    """Copy finished results to `folder` and give them these arrays too, of random numbers."""
    paths = Paths(shutil.copytree(finished, folder))
    manifest = read_record(paths.manifest)
    index = pq.read_table(paths.index)
    residues = np.array(index["embedded_length"].to_pylist(), np.int64)
    random = np.random.default_rng(5)
    for name in names:
        array = Array.named(name)
        lines = int(array.lines(residues).sum())
        shape = (lines, *array.line(manifest["model"]["width"]))
        dtype = array.dtype(manifest["arrays"]["mean.npy"]["dtype"])
        np.save(paths.root / f"{name}.npy", random.random(shape).astype(dtype))
        manifest["arrays"][f"{name}.npy"] = {
            **{"shape": list(shape), "dtype": dtype, "output": array.output.name},
            **{"layer": array.layer, "columns": list(array.output.columns or ()) or None},
        }
        manifest["sha256"][f"{name}.npy"] = file_digest(paths.root / f"{name}.npy")
        if array.per == "pair":
            pairs = np.concatenate(([0], np.cumsum(array.lines(residues))))
            np.save(paths.root / "contacts_offsets.npy", pairs)
    write_record(paths.manifest, json.loads(json.dumps(manifest)))
    return paths.root
