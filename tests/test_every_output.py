"""Whole runs: every output of forty proteins is what fair-esm gives, one protein at a time."""

import numpy as np
import pytest

import packedesm
from packedesm.cli import main
from packedesm.files import read_record
from packedesm.paths import Paths
from tests.fair_esm_says import GEOMETRY_8M, MOST, FairEsm

pytestmark = [pytest.mark.slow, pytest.mark.cpu, pytest.mark.usefixtures("one_thread")]

EARLIER = (0, 3)  # layers besides the last
FLOAT32 = 5e-6  # relative L2 of every record and array
CONTACTS = 1e-5  # absolute
BFLOAT16, COSINE = 0.02, 0.9995  # of mean vectors


@pytest.fixture(scope="module")
def oracle(eight_million) -> FairEsm:
    return FairEsm(eight_million.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, eight_million):
    """Return a function that runs the command and opens its results."""

    def run(sequences: dict[str, str], *options: str) -> packedesm.Results:
        folder = tmp_path_factory.mktemp("run")
        fasta = folder / "in.fasta"
        fasta.write_text("".join(f">{name}\n{text}\n" for name, text in sequences.items()))
        out = folder / "out"
        asked = ["embed", str(fasta), "-o", str(out), "--model", str(eight_million.path)]
        assert main([*asked, "--verify-sequences", "4", *options]) == 0
        return packedesm.open(out)

    return run


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == np.shape(expected)
    found = np.asarray(found, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def of_record(results: packedesm.Results, name: str, row: int) -> np.ndarray:
    array = results.array(name)
    if array.shape[0] == len(results):
        return array[row]
    start, stop = results.offsets(name)[row : row + 2]
    return array[start:stop]


def test_every_output_of_one_pass_is_fair_esms(run, eight_million, oracle, forty):
    layers = ",".join(map(str, (*EARLIER, "last")))
    outputs = "mean,cls,max,residue,logits,log_likelihood,contacts"
    results = run(forty, "--outputs", outputs, "--layers", layers)
    assert len(results.arrays) == 4 * 3 + 3
    for row, (name, sequence) in enumerate(forty.items()):
        expected = oracle.arrays_of(eight_million.said(row), sequence[:MOST], EARLIER)
        assert expected.keys() == set(results.arrays)
        for array, numbers in expected.items():
            found = of_record(results, array, row)
            if array == "contacts":
                assert np.abs(found - numbers).max() <= CONTACTS, name
            else:
                assert distance(found, numbers) <= FLOAT32, (name, array)
    verified = read_record(Paths(results.path).verification)
    assert {record["array"] for record in verified["records"]} == set(results.arrays)


def test_in_bfloat16_mean_vectors_of_every_layer_keep_their_bars(run, eight_million, forty):
    layers = [*range(GEOMETRY_8M.layers), "last"]
    asked = ("--layers", ",".join(map(str, layers)), "--dtype", "bfloat16")
    results = run(forty, *asked, "--output-dtype", "float32")
    for row in range(len(forty)):
        said = eight_million.said(row)["representations"]
        for layer in layers:
            of_layer = said[GEOMETRY_8M.layers if layer == "last" else layer]
            numbers = of_layer[0, 1:-1].double().numpy().mean(0)
            found = results.array("mean", layer=layer)[row].astype(np.float64)
            assert distance(found, numbers) <= BFLOAT16, layer
            cosine = found @ numbers / np.linalg.norm(found) / np.linalg.norm(numbers)
            assert cosine >= COSINE, layer


def test_masked_outputs_of_five_proteins_are_those_of_a_plain_loop(run, oracle, forty):
    few = dict(list(forty.items())[:5])
    results = run(few, "--outputs", "masked_marginals,pseudo_perplexity")
    for row, sequence in enumerate(few.values()):
        expected = oracle.masked_arrays(sequence[:MOST])
        for array in ("masked_marginals", "pseudo_perplexity"):
            found, numbers = of_record(results, array, row), expected[array]
            if array == "pseudo_perplexity":
                # Of random weights it is 10^20: what it is the exponential of is compared.
                found, numbers = np.log(found.astype(np.float64)), np.log(numbers)
            assert distance(found, numbers) <= FLOAT32, array
