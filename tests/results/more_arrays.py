"""Arrays of every kind, put into the results of a small run that made but some of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packedesm.files import create_npy, file_digest, read_record, write_record
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


def made_up(finished: Path, folder: Path, records: int, width: int) -> None:
    """Write results to ``folder/out`` as a run on so many proteins would have left them."""
    paths = Paths(folder / "out")
    paths.root.mkdir()
    index = pq.read_table(finished / "index.parquet")
    rows = np.arange(records)
    columns = {
        name: pa.array([index[name][0].as_py()] * records, kind)
        for name, kind in zip(index.schema.names, index.schema.types, strict=True)
    }
    columns |= {
        "row": pa.array(rows),
        "id": pa.array([f"sp|P{row:07}|X{row}_HUMAN" for row in rows]),
    }
    columns["record"] = pa.array(rows + 1)
    pq.write_table(pa.table(columns, schema=index.schema), paths.index, row_group_size=1 << 18)
    path = paths.root / "mean.npy"
    vectors = create_npy(path, (records, width), "float16")
    block = np.random.default_rng(3).standard_normal((1 << 14, width)).astype(np.float16)
    for start in range(0, records, len(block)):
        vectors[start : start + len(block)] = block[: records - start]
    vectors.flush()
    manifest = read_record(finished / "manifest.json")
    manifest |= {"records": records, "sha256": {"mean.npy": file_digest(path)}}
    manifest["arrays"] = {"mean.npy": {"shape": [records, width], "dtype": "float16"}}
    write_record(paths.manifest, manifest)
