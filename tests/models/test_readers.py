"""Exports, as they are read by tools whose needs are too many for the environment of the tests.

By make test-models, which installs the tools beside it, without those needs.
"""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import packedesm
from packedesm.cli import main
from packedesm.esm2.registry import TINY

SWITCH = "PACKEDESM_TEST_MODELS"  # the folder that make test-models installs in
pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(SWITCH not in os.environ, reason="by make test-models"),
]

PROTSPACE = """
import sys
from pathlib import Path
import numpy as np
from protspace.data.loaders.h5 import load_h5, parse_identifier
read = load_h5([Path(sys.argv[1])])
np.savez(sys.argv[2], data=read.data, headers=read.headers, name=read.name,
         called=[parse_identifier(header) for header in read.headers])
"""
# One of its modules, by its path: the package itself imports all that it trains with.
BIOTRAINER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("hashing", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*map(module.calculate_sequence_hash, sys.argv[2:]))
"""
RECORDS = {"sp|P12345|A_HUMAN": "MKTAYIAKQRQ", "tr|A0A0B4J2F0|B": "MLEERLGL", "plain": "MSHFSRQLE"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoints) -> packedesm.Results:
    folder = tmp_path_factory.mktemp("readers")
    fasta = folder / "in.fasta"
    fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    options = ["--model", TINY, "--checkpoints", str(checkpoints), "--output-dtype", "float16"]
    assert main(["embed", str(fasta), "-o", str(folder / "out"), *options]) == 0
    return packedesm.open(folder / "out")


def read_by(code: str, *arguments: object) -> str:
    readers = Path(os.environ[SWITCH]) / "readers"
    path = os.pathsep.join([str(readers), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("keys", ["id", "accession"])
def test_protspace_reads_h5(results, tmp_path, keys):
    path = tmp_path / "x.h5"
    arguments = ["--format", "h5", "--keys", keys, "-o", str(path)]
    assert main(["export", str(results.path), *arguments]) == 0
    read_by(PROTSPACE, path, tmp_path / "read.npz")
    read = np.load(tmp_path / "read.npz")
    called = dict(zip(read["called"].tolist(), read["data"], strict=True))
    assert set(called) == {"P12345", "A0A0B4J2F0", "plain"}
    assert str(read["name"]) == TINY
    for record, name in zip(RECORDS, ("P12345", "A0A0B4J2F0", "plain"), strict=True):
        np.testing.assert_array_equal(called[name], results.vector(record))


def test_biotrainer_finds_proteins_by_its_hash(results, tmp_path):
    path = tmp_path / "x.h5"
    arguments = ["--format", "h5", "--keys", "biotrainer", "-o", str(path)]
    assert main(["export", str(results.path), *arguments]) == 0
    module = Path(os.environ[SWITCH]) / "readers" / "biotrainer" / "utilities" / "hashing.py"
    hashes = read_by(BIOTRAINER, module, *RECORDS.values()).split()
    with h5py.File(path) as file:
        for record, key in zip(RECORDS, hashes, strict=True):
            np.testing.assert_array_equal(file[key][:], results.vector(record))
            assert file[key].attrs["original_id"] == record
