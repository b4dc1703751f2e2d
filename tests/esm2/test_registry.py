"""Models by name, by file and by folder."""

from pathlib import Path

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.registry import MODELS, checkpoint_folder, locate


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
