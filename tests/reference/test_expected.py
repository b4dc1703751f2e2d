"""What the reference expects of every array, held to plain calls of fair-esm."""

import random

import numpy as np
import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.model_files import regression_file
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD, OUTPUTS, Array, array_names
from packedesm.reference.expected import reference_vectors
from packedesm.reference.model import DoesNotFitError, Reference
from tests.fair_esm_says import FairEsm, write_model
from tests.typed import policy

torch.set_num_threads(1)

LAYERS = (0, 1)
EVERY = [*map(Array.named, array_names(OUTPUTS, [*LAYERS, "last"], 2))]
SEQUENCE = "".join(random.Random(5).choices("LAGVSERTIDPKQNFYMHWCXBUZO", k=50))
WHOLE = policy(long_sequences="full")
WINDOWS = policy(long_sequences="window", max_length=20, window_overlap=12)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(path) -> Reference:
    return Reference(path, None, {LANGUAGE_HEAD, CONTACT_HEAD}, regression_file(path))


@pytest.fixture(scope="module")
def fair_esm(path) -> FairEsm:
    return FairEsm(path)


def named(*names: str) -> list[Array]:
    return [Array.named(name) for name in names]


@pytest.mark.parametrize("length", [1, 2, 50])
def test_every_array_is_what_fair_esm_says(reference, fair_esm, length):
    sequence = SEQUENCE[:length]
    found = reference_vectors(reference, sequence, WHOLE, EVERY)
    expected = fair_esm.arrays(sequence, LAYERS)
    assert found.keys() == expected.keys() == {array.name for array in EVERY}
    for name, array in found.items():
        assert array.dtype == np.float64
        assert array.shape == expected[name].shape
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_what_is_cut_off_is_not_there(reference, fair_esm):
    found = reference_vectors(reference, SEQUENCE, policy(max_length=20), EVERY)
    expected = fair_esm.arrays(SEQUENCE[:20], LAYERS)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_masked_marginals_come_at_the_places_asked_for(reference, fair_esm):
    found = reference_vectors(reference, SEQUENCE, WHOLE, named("masked_marginals"), [3, 40])
    whole = fair_esm.arrays(SEQUENCE, ())["masked_marginals"]
    assert found["masked_marginals"].shape == (2, 20)
    np.testing.assert_allclose(found["masked_marginals"], whole[[3, 40]], rtol=1e-6)
    none = reference_vectors(reference, SEQUENCE, WHOLE, named("masked_marginals"), [])
    assert none["masked_marginals"].shape == (0, 20)


def test_of_windows_that_overlap_the_mean_is_taken(reference, fair_esm):
    spans = WINDOWS.windows(len(SEQUENCE))
    windows = [fair_esm.arrays(SEQUENCE[start:stop], LAYERS) for start, stop in spans]
    names = ("residue", "residue.layer1", "logits", "log_likelihood", "cls.layer0", "max")
    found = reference_vectors(reference, SEQUENCE, WINDOWS, named(*names))
    assert len(spans) > 3
    for place in range(len(SEQUENCE)):
        mine = [
            (window, place - start)
            for window, (start, stop) in zip(windows, spans, strict=True)
            if start <= place < stop
        ]
        for name in names[:4]:
            expected = np.mean([window[name][at] for window, at in mine], axis=0)
            np.testing.assert_allclose(found[name][place], expected, rtol=1e-6, err_msg=name)
    cls = np.mean([window["cls.layer0"] for window in windows], axis=0)
    np.testing.assert_allclose(found["cls.layer0"], cls, rtol=1e-6)
    np.testing.assert_array_equal(found["max"], found["residue"].max(axis=0))


def test_a_residue_is_masked_where_it_stands_furthest_from_the_ends(reference, fair_esm):
    sequence = SEQUENCE[:28]
    assert WINDOWS.windows(28) == [(0, 20), (8, 28)]
    # The ends are 6 and 5 away from residue 13, 5 and 6 from the next.
    both = named("masked_marginals", "pseudo_perplexity")
    found = reference_vectors(reference, sequence, WINDOWS, both)
    first, second = fair_esm.arrays(sequence[:20], ()), fair_esm.arrays(sequence[8:], ())
    lines = np.concatenate([first["masked_marginals"][:14], second["masked_marginals"][6:]])
    np.testing.assert_allclose(found["masked_marginals"], lines, rtol=1e-6)
    own = [fair_esm.masked(sequence[:20], place) for place in range(14)]
    own += [fair_esm.masked(sequence[8:], place) for place in range(6, 20)]
    letters = enumerate(fair_esm.letters(sequence))
    expected = np.exp(-np.mean([float(own[place][token]) for place, token in letters]))
    np.testing.assert_allclose(found["pseudo_perplexity"], expected, rtol=1e-6)


def test_of_two_windows_in_whose_middle_it_stands_a_residue_is_masked_in_the_earlier(
    reference, fair_esm
):
    windows = policy(long_sequences="window", max_length=20, window_overlap=13)
    assert windows.windows(27) == [(0, 20), (7, 27)]  # the ends are 6 away from residue 13 in both
    found = reference_vectors(reference, SEQUENCE[:27], windows, named("masked_marginals"), [13])
    first = fair_esm.arrays(SEQUENCE[:20], ())["masked_marginals"][13]
    np.testing.assert_allclose(found["masked_marginals"][0], first, rtol=1e-6)


def test_contacts_of_a_long_protein_are_those_of_fair_esm_too(reference, fair_esm, monkeypatch):
    monkeypatch.setattr("packedesm.reference.blocked_attention.WHOLE_BYTES", 0)  # all are long
    found = reference_vectors(reference, SEQUENCE, WHOLE, named("mean", "contacts"))
    expected = fair_esm.arrays(SEQUENCE, ())
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, err_msg=name)


def test_contacts_that_do_not_fit_are_not_begun_where_the_rest_is(reference, monkeypatch):
    monkeypatch.setattr("packedesm.reference.memory.available_bytes", lambda: 2e5)
    reference_vectors(reference, SEQUENCE, WHOLE, named("mean", "logits"))
    with pytest.raises(DoesNotFitError):
        reference_vectors(reference, SEQUENCE, WHOLE, named("contacts"))


def test_a_head_that_was_not_loaded_is_not_taken_at_random(path, tmp_path):
    (alone := tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="contact"):
        Reference(alone, None, {CONTACT_HEAD})
    without = Reference(alone)
    for name in ("contacts", "log_likelihood", "pseudo_perplexity"):
        with pytest.raises(ValueError, match="head is not among what was loaded"):
            reference_vectors(without, "MKV", WHOLE, named(name))


def test_heads_of_other_layouts_are_put_into_fair_esms_model(path, reference, tmp_path):
    content = torch.load(path, weights_only=False)  # this very test has written it
    bare = {
        name.removeprefix("encoder.").removeprefix("sentence_encoder."): tensor
        for name, tensor in content["model"].items()
    }
    bare |= torch.load(regression_file(path), weights_only=True)["model"]
    torch.save(bare, tmp_path / "bare.pt")
    names = named("mean", "logits", "contacts", "masked_marginals")
    other = Reference(tmp_path / "bare.pt", None, {LANGUAGE_HEAD, CONTACT_HEAD})
    found = reference_vectors(other, SEQUENCE, WHOLE, names, [3])
    for name, array in reference_vectors(reference, SEQUENCE, WHOLE, names, [3]).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
