"""Every kind of array is verified, and whatever is wrong in one is seen in that one."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from packedesm.alphabet import TOKENS
from packedesm.embedding.record import ShardRun
from packedesm.esm2.model_files import regression_file
from packedesm.files import combined, file_digest, write_record
from packedesm.options import ReferenceOptions, VerifyOptions
from packedesm.outputs import OUTPUTS, Array, array_names
from packedesm.paths import Paths
from packedesm.reference import whole_proteins
from packedesm.reference.comparison import Limits, compare
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import PARTS, ReferenceVectors
from packedesm.report.verify import verify
from tests import typed
from tests.fair_esm_says import GEOMETRY, FairEsm, write_model
from tests.report.finished_run import write_run

torch.set_num_threads(1)

LAYERS = (0, 1)
NAMES = array_names(OUTPUTS, [*LAYERS, "last"], GEOMETRY.layers)
# The last but one says the third once more; X has no column among the 20 amino acids.
SEQUENCES = ("MKVLAGHKLW", "MAYITWKQCDEFNLLGHIKRS", "MWAGKLC", "MKXLAGHIVC", "MWAGKLC", "MQ" * 12)
FASTA = "".join(f">p{row}\n{sequence}\n" for row, sequence in enumerate(SEQUENCES))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def truth(tmp_path_factory, model) -> Paths:
    """A finished run of all arrays, which hold what fair-esm says."""
    files = [model, regression_file(model)]
    checkpoint = typed.checkpoint(
        path=str(model),
        geometry=GEOMETRY,
        sha256=combined([*map(file_digest, files)]),
        regression=str(files[-1]),
    )
    paths = write_run(
        tmp_path_factory.mktemp("truth") / "sample",
        FASTA,
        2,
        run={"checkpoint": checkpoint, "arrays": NAMES},
    )
    checkpoint.write(paths.checkpoint)
    said = [FairEsm(model).arrays(sequence, LAYERS) for sequence in SEQUENCES]
    lengths = np.array([len(sequence) for sequence in SEQUENCES])
    for array in map(Array.named, NAMES):
        mine = [one[array.name] for one in said]
        whole = np.stack(mine) if array.per == "record" else np.concatenate(mine)
        np.save(paths.array(array.name), whole.astype(np.float32))
        if (offsets := paths.offsets(array.per)) is not None:
            np.save(offsets, np.cumsum([0, *array.lines(lengths)]))
    # Without digests: these tests damage arrays to see what the comparison says.
    write_record(paths.merging, {"sha256": {}, "made_from": []})
    config = {"arrays": NAMES, "verify": {"sequences": 100}}
    reference = of_run(paths, typed.options(ReferenceOptions, **config))
    for part in PARTS:
        write_reference(paths, checkpoint, reference, part, shards=2)
    return paths


@pytest.fixture
def paths(truth, tmp_path) -> Paths:
    """A copy of the finished run, to be damaged."""
    return Paths(shutil.copytree(truth.root, tmp_path / "sample"))


def of_run(paths: Paths, options: ReferenceOptions) -> ReferenceOptions:
    return replace(options, length=ShardRun.read(paths.shard_run(0)).options.length)


def verified(paths: Paths, **changes) -> dict:
    config = {"sequences": 100, **changes}
    return verify(paths, typed.options(VerifyOptions, verify=config), shards=2)


def again(paths: Paths, names: tuple[str, ...], checkpoint=None, **changes) -> dict:
    """Verify as a run of these arrays alone, with a reference of its own."""
    runs = [ShardRun.read(paths.shard_run(shard)) for shard in range(2)]
    for run in runs:
        plan = replace(run.plan, arrays=names)
        replace(run, plan=plan).write(paths.shard_run(run.shard))
    config = {"arrays": names, "verify": {"sequences": 100, **changes}}
    options = of_run(paths, typed.options(ReferenceOptions, **config))
    for part in PARTS:
        write_reference(paths, checkpoint or runs[0].checkpoint, options, part, shards=2)
    return verified(paths, **changes)


def edit(paths: Paths, name: str, change) -> None:
    array = np.load(paths.array(name))
    np.save(paths.array(name), change(array.copy()).astype(array.dtype))


def missed(result: dict) -> set[str]:
    return {record["array"] for record in result["records"] if not record["passed"]}


def test_true_arrays_pass_and_each_is_told(paths):
    result = verified(paths)
    assert result["passed"] is True
    assert result["not_compared"] == []
    assert result["masked_places"] == sum(map(len, SEQUENCES))
    assert result["sequences"] == len(SEQUENCES)
    told = {(array["array"], array["against"]): array for array in result["arrays"]}
    own = ("pseudo_perplexity", "masked_marginals")
    assert {*told} == {(name, "reference") for name in NAMES} | {own}
    for name, array in told.items():
        # The marginals have no column for the X of one.
        count = len(SEQUENCES) - (name == own)
        assert (array["compared"], array["passed"]) == (count, True), name
        assert array["relative_l2"] < 2e-6
        assert (array["cosine"] is not None) == OUTPUTS[array["output"]].layered
    assert told["mean.layer1", "reference"]["output"] == "mean"
    assert told["mean.layer1", "reference"]["layer"] == 1


@pytest.mark.parametrize(
    ("passes", "places"),
    [
        (512, [10, 21, 7, 10, 7, 24]),
        (34, [10, 4, 7, 10, 7, 4]),
        (33, [10, 4, 7, 4, 7, 4]),
        (6, [4] * 6),
    ],
)
def test_all_places_of_the_shortest_are_masked_and_few_of_others(
    paths, monkeypatch, passes, places
):
    monkeypatch.setattr(whole_proteins, "_MOST", passes)
    for path in (paths.work / "reference").iterdir():
        path.unlink()
    again(paths, NAMES)
    options = typed.options(ReferenceOptions, arrays=NAMES, verify={"sequences": 100})
    sha256 = ShardRun.read(paths.shard_run(0)).checkpoint.sha256
    parts = [ReferenceVectors.read(paths, part, of_run(paths, options), sha256) for part in PARTS]
    masked = {
        protein.row: protein.positions
        for part in parts
        for protein in part.proteins
        if protein.positions
    }
    assert [len(masked[row]) for row in range(6)] == places
    whole = {p.row for p in parts[1].proteins if "pseudo_perplexity" in p.vectors}
    assert whole == {row for row in range(6) if places[row] == len(SEQUENCES[row])}
    assert all(list(places) == sorted(set(places)) for places in masked.values())
    # What comes before the jobs begin takes no masked pass.
    assert not any(p.positions or "pseudo_perplexity" in p.vectors for p in parts[0].proteins)
    assert len(parts[0].proteins) == 4


def swapped(array):
    array[:, [5, 6]] = array[:, [6, 5]]
    return array


def by_columns(array):
    """Upper triangles as one gets them column by column."""
    begin = 0
    for sequence in SEQUENCES:
        size = len(sequence)
        square = np.zeros((size, size))
        square[np.triu_indices(size)] = array[begin : (end := begin + size * (size + 1) // 2)]
        array[begin:end] = square.T[np.tril_indices(size)]
        begin = end
    return array


def of_row_4(change):
    def changed(array):
        array[4] = change(array[4])
        return array

    return changed


BREAKS = {
    "a shifted triangle": ("contacts", lambda a: np.roll(a, 1)),
    "a triangle column by column": ("contacts", by_columns),
    "one contact": ("contacts", lambda a: a * (np.arange(len(a)) != 60)),
    "no sigmoid": ("contacts", lambda a: np.log(a / (1 - a))),
    "columns of logits": ("logits", swapped),
    "log softmax for logits": ("logits", lambda a: torch.tensor(a).log_softmax(-1).numpy()),
    "the letter before": ("log_likelihood", lambda a: np.roll(a, 1)),
    "bits for nats": ("log_likelihood", lambda a: a / np.log(2)),
    "columns of marginals": ("masked_marginals", swapped),
    "columns by the alphabet": (
        "masked_marginals",
        lambda a: a[:, np.argsort(OUTPUTS["masked_marginals"].columns)],
    ),
    "softmax over the twenty": (
        "masked_marginals",
        lambda a: torch.tensor(a).log_softmax(-1).numpy(),
    ),
    "the sign of the perplexity": ("pseudo_perplexity", lambda a: 1 / a),
    "a perplexity of another": ("pseudo_perplexity", of_row_4(lambda value: value * 1.01)),
    "its logarithm": ("pseudo_perplexity", np.log),
    "a perplexity that is none": ("pseudo_perplexity", lambda a: 0 * a),
    "one residue of a layer": (
        "residue.layer1",
        lambda a: a + (np.arange(len(a)) == 9)[:, None] * np.linspace(-0.1, 0.1, a.shape[1]),
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_wrong_is_seen_in_its_array(paths, what):
    name, change = BREAKS[what]
    edit(paths, name, change)
    result = verified(paths)
    assert result["passed"] is False
    # A perplexity is held to the marginals, so it misses too where these are wrong.
    also = {"pseudo_perplexity"} if name == "masked_marginals" else set()
    assert {name} <= missed(result) <= {name} | also
    assert result["worst"]["array"] in {name} | also
    assert {a["array"] for a in result["arrays"] if a["passed"] is False} == missed(result)


@pytest.mark.parametrize("output", ["mean", "cls", "max", "residue"])
def test_a_layer_that_is_another_is_seen(paths, output):
    shutil.copy(paths.array(f"{output}.layer1"), paths.array(f"{output}.layer0"))
    assert missed(verified(paths)) == {f"{output}.layer0"}


def test_marginals_without_masks_are_seen(paths):
    columns = [TOKENS.index(letter) for letter in OUTPUTS["masked_marginals"].columns]
    logits = torch.tensor(np.load(paths.array("logits")))
    edit(paths, "masked_marginals", lambda _: logits.log_softmax(-1).numpy()[:, columns])
    assert "masked_marginals" in missed(verified(paths))


def test_offsets_of_contacts_off_by_one_are_seen(paths):
    offsets = np.load(paths.contacts_offsets)
    np.save(paths.contacts_offsets, np.concatenate(([0], offsets[1:-1] + 1, offsets[-1:])))
    assert missed(verified(paths)) == {"contacts"}


def test_float16_files_pass_with_their_rounding(paths):
    for shard in range(2):
        run = ShardRun.read(paths.shard_run(shard))
        plan = replace(run.plan, output_dtype="float16")
        replace(run, plan=plan).write(paths.shard_run(shard))
    for array in map(Array.named, NAMES):
        np.save(
            paths.array(array.name), np.load(paths.array(array.name)).astype(array.dtype("float16"))
        )
    result = verified(paths)
    assert result["passed"] is True
    worst = {array["array"]: array["relative_l2"] for array in result["arrays"]}
    assert max(worst.values()) < 1e-3
    assert 1e-5 < worst["contacts"] < 2**-11


def test_a_perplexity_alone_is_that_of_the_shortest_and_told_if_too_long(paths, monkeypatch):
    monkeypatch.setattr(whole_proteins, "_MOST", 14)
    result = again(paths, ("pseudo_perplexity",))
    assert [(r["row"], r["against"]) for r in result["records"]] == [
        (2, "reference"),
        (4, "reference"),
    ]
    assert (result["passed"], result["sequences"]) == (True, 2)
    (said,) = result["not_compared"]
    assert said.startswith("pseudo_perplexity of 4 proteins (rows 0, 1, 3, 5) not compared with")
    edit(paths, "pseudo_perplexity", lambda a: a * (1 + 1e-3))
    assert missed(verified(paths)) == {"pseudo_perplexity"}
    for path in (paths.work / "reference").iterdir():
        path.unlink()
    monkeypatch.setattr(whole_proteins, "_MOST", 6)
    result = again(paths, ("mean", "pseudo_perplexity"))
    (said,) = result["not_compared"]
    assert said.startswith("pseudo_perplexity of 6 proteins (rows 0, 1, 2, 3, 4, 5) not compared")
    assert result["passed"] is True  # of what was compared
    for path in (paths.work / "reference").iterdir():
        path.unlink()
    result = again(paths, ("pseudo_perplexity",))
    assert (result["passed"], result["sequences"], len(result["not_compared"])) == (None, 0, 1)


def test_a_perplexity_held_to_the_runs_own_marginals_is_told_apart(paths, monkeypatch):
    monkeypatch.setattr(whole_proteins, "_MOST", 7)
    for path in (paths.work / "reference").iterdir():
        path.unlink()
    names = ("masked_marginals", "pseudo_perplexity")
    result = again(paths, names)
    told = [(array["array"], array["against"], array["compared"]) for array in result["arrays"]]
    assert told == [
        ("masked_marginals", "reference", 6),
        ("pseudo_perplexity", "reference", 1),
        ("pseudo_perplexity", "masked_marginals", 5),
    ]
    (said,) = result["not_compared"]
    assert "of 5 proteins (rows 0, 1, 3, 4, 5) not compared with fair-esm" in said
    assert said.endswith("; 4 compared with the run's own masked marginals")
    # Of the last the run's own marginals alone speak: what misses them fails, and is the worst.
    edit(paths, "pseudo_perplexity", lambda a: a * np.where(np.arange(6) == 5, 1.01, 1))
    result = verified(paths)
    assert result["passed"] is False
    assert (result["worst"]["row"], result["worst"]["array"]) == (5, "pseudo_perplexity")
    assert [array["passed"] for array in result["arrays"]] == [True, True, False]


def test_contacts_whose_reference_does_not_fit_are_left_out_and_told(paths, monkeypatch, caplog):
    # So much as 20 residues take: attention weights of 2 x 2 heads, 30 bytes each, and the tokens.
    room = 4 * 30 * 22**2 + 16 * 100 * 22
    monkeypatch.setattr("packedesm.reference.memory.available_bytes", lambda: room)
    result = again(paths, ("mean", "contacts"))
    assert {r["row"] for r in result["records"] if r["array"] == "contacts"} == {0, 2, 3, 4}
    assert {r["row"] for r in result["records"] if r["array"] == "mean"} == {*range(6)}
    (said,) = result["not_compared"]
    assert said.startswith("contacts of 2 proteins (rows 1, 5) not compared: fair-esm's attention")
    assert said in caplog.text


def test_of_contacts_alone_a_shorter_protein_is_taken_instead(paths, monkeypatch):
    room = 4 * 30 * 22**2 + 16 * 100 * 22
    monkeypatch.setattr("packedesm.reference.memory.available_bytes", lambda: room)
    result = again(paths, ("contacts",), sequences=1)
    assert [told["row"] for told in result["replaced"]] == [5, 1]
    assert {r["row"] for r in result["records"]} == {result["replaced"][-1]["by"]}
    assert result["not_compared"] == []


# How far is far.

LIMITS = Limits(0.99, 0.01)


def of(name: str, found, expected):
    return compare(np.array(found), np.array(expected), LIMITS, Array.named(name))


def test_a_log_probability_near_zero_is_held_to_a_nat():
    assert of("log_likelihood", [-1e-3, -2e-3], [-1e-4, -1e-3]).passed
    assert not of("log_likelihood", [-1e-3, -3e-2], [-1e-4, -1e-3]).passed
    assert not of("logits", [[-1e-3, -2e-3]], [[-1e-4, -1e-3]]).passed
    assert of("log_likelihood", [-4.0], [-4.02]).relative_l2 == pytest.approx(0.02 / 4.02)


def test_a_perplexity_is_compared_by_its_logarithm():
    assert of("pseudo_perplexity", np.exp(30.0), np.exp(30.3)).relative_l2 == pytest.approx(
        0.3 / 30.3
    )
    assert of("pseudo_perplexity", 1.001, 1.002).relative_l2 == pytest.approx(1e-3, rel=0.01)
    assert not of("pseudo_perplexity", 1.1, 1.0).passed
    for none in (0.0, -1.0, np.nan, np.inf):
        assert of("pseudo_perplexity", none, 3.0).relative_l2 is None


def test_contacts_of_what_does_not_touch_are_held_to_a_tenth():
    assert of("contacts", [1e-3, 2e-3], [2e-3, 1e-3]).passed
    assert not of("contacts", [1e-3, 4e-3], [2e-3, 1e-3]).passed
    found = of("contacts", [0.5, 0.5, 0.01], [0.5, 0.5, 0.0])
    assert found.relative_l2 == pytest.approx(0.01 / 0.5**0.5)
    assert (found.absolute, found.cosine) == (0.01, None)


def test_only_vectors_have_a_cosine():
    assert of("residue.layer3", [[1.0, 0.0]], [[1.0, 0.0]]).cosine == 1
    assert of("logits", [[1.0, 0.0]], [[1.0, 0.0]]).cosine is None
