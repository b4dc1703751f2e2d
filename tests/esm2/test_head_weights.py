"""Both heads are found in every layout, by their names alone, or it is one line why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from packedesm.device.auto import load_model
from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare, read, reading_weights
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.input_files import files_as_named, present_files, published_base
from packedesm.esm2.registry import DEMO, TINY, Checkpoint
from packedesm.files import combined, file_digest
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD, needs
from tests.esm2.checkpoint_files import SMALL, write_adapter, write_huggingface_folder

BOTH = needs(["mean", "logits", "contacts"])
CPU = torch.device("cpu")


@pytest.fixture
def heads(small) -> dict[str, torch.Tensor]:
    """The weights of both heads beside `small`, by fair-esm's names; its regression is written."""
    regression = small.with_name("small-contact-regression.pt")
    write_random_regression(regression, SMALL, seed=7)
    content = torch.load(small, weights_only=False)["model"]
    language = {
        name.removeprefix("encoder."): tensor
        for name, tensor in content.items()
        if "lm_head" in name
    }
    return language | torch.load(regression, weights_only=True)["model"]


def test_what_an_output_needs_is_told():
    assert needs(["mean", "residue"]) == frozenset()
    assert needs(["logits", "pseudo_perplexity"]) == {LANGUAGE_HEAD}
    assert {LANGUAGE_HEAD, CONTACT_HEAD} == BOTH


def in_layout(layout: str, folder: Path, small: Path, heads) -> Path:
    """Write `small` with its heads in a layout."""
    geometry, state = load_state(small)
    if layout == "fair-esm":
        return small
    if layout == "hugging face":
        write_huggingface_folder(folder / "hf", geometry, state, heads=heads)
        return folder / "hf"
    if layout == "hugging face, tied":
        untied = {name: tensor for name, tensor in heads.items() if name != "lm_head.weight"}
        write_huggingface_folder(folder / "hf", geometry, state, heads=untied, shards=2)
        return folder / "hf"
    tensors = {name: tensor.clone() for name, tensor in {**state, **heads}.items()}
    if layout == "hugging face's names":
        write_huggingface_folder(folder / "hf", geometry, state, heads=heads)
        from safetensors.torch import load_file

        found = load_file(folder / "hf" / "model.safetensors")
        tensors = {f"net.{name}": tensor for name, tensor in found.items()}
        tensors["lm_head.dense.weight"] = torch.ones(2)  # of another model around it
    path = folder / "saved.pt"
    torch.save({"state_dict": tensors}, path)
    return path


@pytest.mark.parametrize(
    "layout",
    ["fair-esm", "hugging face", "hugging face, tied", "state dict", "hugging face's names"],
)
def test_both_heads_are_found_in_every_layout(tmp_path, small, heads, layout):
    path = in_layout(layout, tmp_path, small, heads)
    record = prepare(str(path), "auto", BOTH)
    weights = read(path, None, BOTH, record.regression)
    expected = {name: x for name, x in heads.items() if name != "lm_head.weight"}
    assert weights.heads.keys() == expected.keys()
    assert all(torch.equal(weights.heads[name], x) for name, x in expected.items())
    model = load_model(record, torch.float32, CPU, BOTH)
    assert model.language_head and model.contact_head
    assert torch.equal(model.language_head.dense.weight, expected["lm_head.dense.weight"])
    maps = model.contact_head.weight
    assert maps.shape == (SMALL.layers, SMALL.heads)
    assert torch.equal(maps.flatten(), expected["contact_head.regression.weight"][0])
    one = load_model(record, torch.float32, CPU, {CONTACT_HEAD})
    assert one.language_head is None and one.contact_head is not None


def test_heads_that_nobody_asks_for_are_not_read(small, heads):
    plain, full = prepare(str(small), "auto"), prepare(str(small), "auto", {LANGUAGE_HEAD})
    assert plain == full
    assert plain.sha256 == file_digest(small) and plain.regression is None
    model = load_model(plain, torch.float32, CPU)
    assert model.language_head is None and model.contact_head is None
    assert not read(small).heads


@pytest.mark.parametrize("loaded", ["float32", "bfloat16"])
def test_heads_stay_float32_where_the_model_is_half_precision(small, heads, loaded):
    record = prepare(str(small), "auto", BOTH)
    model = load_model(record, getattr(torch, loaded), CPU, BOTH).bfloat16()
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    language, contact = model.language_head, model.contact_head
    for name, tensor in language.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, heads[f"lm_head.{name}"])
    assert torch.equal(contact.weight.flatten(), heads["contact_head.regression.weight"][0])
    assert contact.bias.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())
    # To move them is no cast.
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


def test_logits_of_half_precision_lack_nothing_but_what_the_encoder_rounds(small, heads):
    record = prepare(str(small), "auto", BOTH)
    whole = load_model(record, torch.float32, CPU, BOTH)
    half = load_model(record, torch.bfloat16, CPU, BOTH)
    hidden = torch.randn(3, SMALL.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = whole.language_head(hidden, whole.embed_tokens.weight)
    found = half.language_head(hidden, half.embed_tokens.weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # What was put in their place since is taken as it is.
    half.float().embed_tokens.weight.zero_()
    found = half.language_head(hidden, half.embed_tokens.weight)
    assert torch.equal(found, half.language_head.bias.expand(3, -1))


def test_what_is_used_of_the_heads_is_told(small, heads, caplog):
    caplog.set_level("INFO")
    prepare(str(small), "auto", {CONTACT_HEAD})
    assert "heads of the model that are used: contact_head\n" in caplog.text
    assert "these parts change no vector: lm_head\n" in caplog.text


# The regression beside the weights


def test_the_regression_is_a_file_of_the_checkpoint_where_contacts_are_asked_for(small, heads):
    regression = small.with_name("small-contact-regression.pt")
    record = prepare(str(small), "auto", {CONTACT_HEAD})
    assert record.files() == [small, regression]
    assert record.sha256 == combined([file_digest(small), file_digest(regression)])
    # Results call the model by its weights alone: it is the same with contacts and without them.
    assert record.facts()["sha256"] == file_digest(small) == prepare(str(small), "auto").sha256
    assert Checkpoint.from_json(record.as_json()) == record
    assert files_as_named(str(small), str, {CONTACT_HEAD}) == [str(small), str(regression)]
    assert files_as_named(str(small), str, {LANGUAGE_HEAD}) == [str(small)]
    assert present_files(small, "auto", {CONTACT_HEAD}) == record.files()
    assert present_files(small, "auto") == [small]


def test_a_step_that_is_given_copies_reads_the_regression_among_them(tmp_path, small, heads):
    record = prepare(str(small), "auto", {CONTACT_HEAD})
    there = tmp_path / "copies"
    there.mkdir()
    copies = [Path(shutil.copy(file, there)) for file in record.files()]
    moved = record.at(copies)
    assert moved.files() == copies
    for file in record.files():
        file.unlink()
    assert load_model(moved, torch.float32, CPU, {CONTACT_HEAD}).contact_head is not None
    # One of a path that a rule will make: the regression is where it was found.
    assert record.at([copies[0]]).regression == record.regression


def test_a_regression_that_changes_is_noticed(small, heads):
    record = prepare(str(small), "auto", {CONTACT_HEAD})
    write_random_regression(Path(record.regression), SMALL, seed=8)
    assert prepare(str(small), "auto", {CONTACT_HEAD}).sha256 != record.sha256
    with pytest.raises(UserError, match="changed since it was checked"), reading_weights(record):
        pass
    Path(record.regression).unlink()
    with pytest.raises(UserError, match="is gone"), reading_weights(record):
        pass


def test_the_file_beside_a_checkpoint_precedes_what_is_in_it_as_in_fair_esm(tmp_path, small, heads):
    path = in_layout("state dict", tmp_path, small, heads)
    write_random_regression(tmp_path / "saved-contact-regression.pt", SMALL, seed=9)
    found = load_model(prepare(str(path), "auto", BOTH), torch.float32, CPU, BOTH)
    beside = torch.load(tmp_path / "saved-contact-regression.pt", weights_only=True)["model"]
    expected = beside["contact_head.regression.weight"][0]
    assert torch.equal(found.contact_head.weight.flatten(), expected)


def test_the_untrained_model_gets_a_regression_when_it_is_needed(tmp_path):
    plain = prepare(TINY, tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").iterdir()] == [f"{TINY}.pt"]
    records = [prepare(TINY, tmp_path / folder, BOTH) for folder in ("one", "two")]
    assert records[0].sha256 == records[1].sha256 != plain.sha256


# Adapters


def test_the_heads_of_an_adapters_base_are_its_own(tmp_path, small, heads):
    adapter = write_adapter(tmp_path / "lora", small, encoder_update())
    record = prepare(str(adapter), "auto", BOTH)
    assert record.files()[-1] == small.with_name("small-contact-regression.pt")
    assert files_as_named(str(adapter), str, BOTH) == [*map(str, record.files())]
    assert record.at(record.files()) == record
    found = load_model(record, torch.float32, CPU, BOTH)
    assert torch.equal(found.language_head.bias, heads["lm_head.bias"])


def test_a_published_bases_regression_is_watched_too(tmp_path):
    tensors = {name.replace("layers.1", "layers.2"): x for name, x in encoder_update(64).items()}
    adapter = write_adapter(tmp_path / "lora", TINY, tensors)
    record = prepare(str(adapter), tmp_path, BOTH)
    named = files_as_named(str(adapter), str, BOTH)
    of_base = published_base(str(adapter), str, tmp_path, BOTH)
    assert [*map(Path, named), *of_base] == record.files() == present_files(adapter, tmp_path, BOTH)
    assert record.at(named) == record


def encoder_update(width=32):
    name = "base_model.model.layers.1.self_attn.q_proj"
    return {
        f"{name}.lora_A.weight": torch.ones(2, width),
        f"{name}.lora_B.weight": torch.ones(width, 2),
    }


def test_an_adapter_of_the_language_head_is_merged_where_that_is_needed(tmp_path, small, heads):
    name = "base_model.model.lm_head"
    update = {
        f"{name}.dense.lora_A.weight": torch.eye(2, 32),
        f"{name}.dense.lora_B.weight": torch.eye(32, 2),
        f"{name}.bias": torch.full((33,), 5.0),
        f"{name}.decoder.weight": load_state(small)[1]["embed_tokens.weight"].clone(),
    }
    adapter = write_adapter(tmp_path / "lora", small, update | encoder_update())
    found = read(adapter, small, {LANGUAGE_HEAD}).heads
    expected = heads["lm_head.dense.weight"].clone()
    expected[0, 0], expected[1, 1] = expected[0, 0] + 3, expected[1, 1] + 3
    assert torch.equal(found["lm_head.dense.weight"], expected)
    assert torch.equal(found["lm_head.bias"], update[f"{name}.bias"])
    assert "lm_head" in read(adapter, small).left_out
    update[f"{name}.decoder.weight"][0, 0] += 1
    write_adapter(tmp_path / "lora", small, update)
    with pytest.raises(UserError, match=r"lora.*is not its embeddings"):
        read(adapter, small, {LANGUAGE_HEAD})
    embeddings = {"base_model.model.embed_tokens.weight": torch.ones(33, 32)}
    write_adapter(tmp_path / "lora", small, embeddings)
    assert read(adapter, small).heads == {}
    with pytest.raises(UserError, match="changes the embeddings, and says not what the language"):
        read(adapter, small, {LANGUAGE_HEAD})


# What is wrong is one line


def test_a_head_that_is_missing_is_one_line_with_what_to_do(tmp_path, small):
    with pytest.raises(UserError) as caught:
        prepare(str(small), "auto", {CONTACT_HEAD})
    assert str(caught.value) == (
        f"{small}: has no contact head (contact_head.regression.weight is missing); it belongs "
        "beside it as small-contact-regression.pt; `packedesm fetch NAME` brings that of a "
        "published model"
    )
    geometry, state = load_state(small)
    write_huggingface_folder(tmp_path / "hf", geometry, state)
    for head, words in (
        (CONTACT_HEAD, r"contact_head\.regression\.weight is missing.*esm\.contact_head\.regress"),
        (LANGUAGE_HEAD, r"lm_head\.dense\.bias is missing.*EsmForMaskedLM"),
    ):
        with pytest.raises(UserError, match=rf"hf: has no {head} \({words}") as caught:
            prepare(str(tmp_path / "hf"), "auto", {head})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none was trained for this model; name a pub"):
        prepare(DEMO, "auto", {CONTACT_HEAD})
    assert prepare(DEMO, "auto", {LANGUAGE_HEAD}).demo


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["lm_head.bias"].fill_(float("nan")), r"lm_head\.bias has numbers that are"),
        (lambda h: h.update({"lm_head.bias": torch.zeros(20)}), r"shape \[20\], expected \[33\]"),
        (lambda h: h.update({"lm_head.weight": torch.zeros(33, 32)}), "is not its embeddings"),
        (lambda h: h.update({"lm_head.x": torch.zeros(1)}), r"lm_head\.x is none of ESM-2's lang"),
        (
            lambda h: h.update({"lm_head.bias": torch.zeros(33, dtype=torch.int64)}),
            "is int64; save",
        ),
        (
            lambda h: h.update({"contact_head.regression.weight": torch.zeros(1, 9)}),
            r"regression\.weight has shape \[1, 9\], expected \[1, 8\]",
        ),
    ],
)
def test_weights_that_are_no_head_of_this_model_are_one_line(
    tmp_path, small, heads, change, message
):
    heads = {name: tensor.clone() for name, tensor in heads.items()}
    change(heads)
    path = in_layout("state dict", tmp_path, small, heads)
    with pytest.raises(UserError, match=rf"saved\.pt.*{message}"):
        prepare(str(path), "auto", BOTH)
    prepare(str(path), "auto")  # without its heads it is a model as before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not the regression of a contact head"),
        ({"weights": {}}, r"not the regression of a contact head \(no 'model'\)"),
        ({"model": {}}, r"contact_head\.regression\.weight is missing"),
        ({"model": {"contact_head.regression.weight": 1.0}}, r"regression\.bias is missing"),
        ("text", "not a checkpoint, or damaged"),
    ],
)
def test_a_file_that_is_no_regression_is_one_line(small, content, message):
    path = small.with_name("small-contact-regression.pt")
    path.write_text("x") if content == "text" else torch.save(content, path)
    with pytest.raises(UserError, match=rf"small-contact-regression\.pt: .*{message}") as caught:
        prepare(str(small), "auto", {CONTACT_HEAD})
    assert "\n" not in str(caught.value)


def test_a_regression_of_another_model_is_one_line(small):
    other = Geometry(layers=3, width=32, heads=4)
    write_random_regression(small.with_name("small-contact-regression.pt"), other, seed=1)
    with pytest.raises(UserError, match=r"small-contact-regression\.pt.*shape \[1, 12\]"):
        prepare(str(small), "auto", {CONTACT_HEAD})


def test_code_in_a_regression_is_not_run(small):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model": Evil()}, small.with_name("small-contact-regression.pt"))
    with pytest.raises(UserError, match="refused, it holds code"):
        prepare(str(small), "auto", {CONTACT_HEAD})


def test_random_heads_are_the_same_for_the_same_seed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_random_checkpoint(tmp_path / name / "m.pt", SMALL, seed=1)
        write_random_regression(tmp_path / name / "m-contact-regression.pt", SMALL, seed=1)
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [file_digest(f) for f in files[0]] == [file_digest(f) for f in files[1]]
    assert json.dumps([f.name for f in files[0]]) == '["m-contact-regression.pt", "m.pt"]'
