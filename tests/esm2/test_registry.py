"""Models by name, by file and by folder."""

from pathlib import Path

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.input_files import files_as_named
from packedesm.esm2.model_files import model_files, model_path
from packedesm.esm2.registry import MODELS, checkpoint_folder, locate
from packedesm.esm2.tensor_files import load_archive, tensors_of
from tests.typed import checkpoint


@pytest.mark.parametrize("variables", [{}, {"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}])
def test_the_automatic_folder_is_where_torch_hub_puts_checkpoints(monkeypatch, variables):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert checkpoint_folder() == Path(torch.hub.get_dir(), "checkpoints")


def test_a_model_name_resolves_to_a_file_of_that_name(tmp_path):
    found = locate("esm2_t33_650M_UR50D", tmp_path)
    assert found == tmp_path / "esm2_t33_650M_UR50D.pt"


def test_the_path_of_a_file_resolves_to_itself(small):
    assert locate(str(small)) == small


def test_an_unknown_model_is_an_error_with_the_nearest_name_and_all_names():
    with pytest.raises(UserError) as caught:
        locate("esm2_t33_650M_UR50")
    message = str(caught.value)
    assert "did you mean esm2_t33_650M_UR50D?" in message
    assert all(name in message for name in MODELS)
    assert "\n" not in message


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        locate(str(tmp_path))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A Hugging Face folder of two files of weights, as far as its names go; named relatively."""
    monkeypatch.chdir(tmp_path)
    folder = Path("mine")
    folder.mkdir()
    for name in ("config.json", "a.safetensors", "b.safetensors"):
        (folder / name).touch()
    index = '{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def test_every_file_that_decides_the_vectors_is_named_as_the_model_is(folder):
    found = files_as_named("mine", str)
    assert found[0] == "mine/config.json"
    names = ("a.safetensors", "b.safetensors", "model.safetensors.index.json")
    assert sorted(found[1:]) == [f"mine/{name}" for name in names]
    (folder.parent / "sub").mkdir()
    folder.rename("sub/mine")
    assert files_as_named("mine", lambda path: f"sub/{path}") == found
    assert model_path(model_files(Path("sub/mine"))) == Path("sub/mine")


def test_a_file_of_weights_may_come_later_but_no_folder_and_no_name(tmp_path):
    assert files_as_named("later.pt", lambda path: str(tmp_path / path)) == ["later.pt"]
    assert model_path(["later.pt"]) == Path("later.pt")
    for missing in ("later", "esm2_t6_8M"):
        with pytest.raises(UserError, match="neither a name nor"):
            files_as_named(missing, str)


def test_a_model_with_a_name_has_no_files_of_the_users():
    assert [files_as_named(name, str) for name in MODELS] == [[]] * len(MODELS)


def test_a_step_uses_the_copies_of_the_weights_that_it_was_given(tmp_path):
    made = checkpoint()
    assert made.at([]) == made
    assert made.at([tmp_path / "mine.pt"]).path == str(tmp_path / "mine.pt")
    files = [tmp_path / "mine" / name for name in ("config.json", "model.safetensors")]
    assert made.at(files).path == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("esm2_t6_8m", "esm2_t6_8M_UR50D"),
        ("facebook/esm2_t33_650M_UR50D", "esm2_t33_650M_UR50D"),
        ("esm2_t12_35M_UR50", "esm2_t12_35M_UR50D"),
    ],
)
def test_a_slip_of_a_name_does_not_end_in_a_model_for_trying_the_software(slip, meant):
    with pytest.raises(UserError, match=f"did you mean {meant}[?]"):
        locate(slip)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_git_has_not_fetched_is_told(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 31139497\n")
    read = load_archive if path.suffix == ".pt" else tensors_of
    with pytest.raises(UserError, match=r"pointer of Git LFS.*git lfs pull"):
        read(path)
