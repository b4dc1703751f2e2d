"""Open a file with anndata, as scanpy does, and tell what it sees there."""

import json
import sys
import warnings
from pathlib import Path

import anndata
import numpy as np


def main(path: str, out: str) -> None:
    """Write all of the file at `path` as anndata gives it, and what it warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = anndata.read_h5ad(path)
        mapped = anndata.read_h5ad(path, backed="r")
    arrays = {f"obsm {name}": data.obsm[name] for name in data.obsm}
    np.savez(f"{out}.npz", X=data.X, mapped=mapped.X[1:4], **arrays)
    data.write_h5ad(f"{out}.h5ad")  # what was read as something odd cannot be written
    obs = data.obs.astype(object).where(data.obs.notna(), None)
    told = {
        "obs_names": list(data.obs_names),
        "var_names": list(data.var_names),
        "columns": {name: str(kind) for name, kind in data.obs.dtypes.items()},
        "obs": obs.to_dict(orient="list"),
        "manifest": data.uns["packedesm_manifest"],
        "model": dict(data.uns["packedesm"]["model"].items()),
        "outputs": list(data.uns["packedesm"]["config"]["outputs"]),
        "warnings": [str(warning.message) for warning in said],
    }
    Path(f"{out}.json").write_text(json.dumps(told, default=lambda value: value.item()))


if __name__ == "__main__":
    main(*sys.argv[1:])
