"""Whether layers are compiled, why, and how often."""

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.utils import counters

from packedesm import compilation
from packedesm.checkpoints import load_state, write_random_checkpoint
from packedesm.compilation import WORTH_FLOPS, select_compilation
from packedesm.errors import UserError
from packedesm.model import PackedESM2
from packedesm.models import Geometry

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def obstacle(monkeypatch):
    """Return a function that sets what hinders compilation."""
    return lambda text: monkeypatch.setattr(compilation, "_obstacle", lambda _device: text)


def test_auto_does_not_compile_on_a_cpu():
    used, reason = select_compilation("auto", CPU, 1e30)
    assert not used
    assert "CPU" in reason


def test_auto_compiles_on_a_gpu_what_is_long_enough(obstacle):
    obstacle(None)
    assert select_compilation("auto", CUDA, WORTH_FLOPS).used
    used, reason = select_compilation("auto", CUDA, WORTH_FLOPS / 2)
    assert not used
    assert "short" in reason


def test_auto_goes_on_without_where_it_is_impossible_and_says_why(obstacle):
    obstacle("Triton is not installed")
    used, reason = select_compilation("auto", CUDA, WORTH_FLOPS)
    assert not used
    assert "Triton is not installed" in reason


def test_asked_for_and_impossible_is_an_error(obstacle):
    obstacle("no compiler")
    with pytest.raises(UserError, match=r"compile: impossible.*no compiler.*auto"):
        select_compilation(True, CPU, 0.0)


def test_switched_off_is_off(obstacle):
    obstacle(None)
    assert not select_compilation(False, CUDA, 1e30).used


@pytest.mark.slow
def test_without_a_compiler_the_attempt_says_so():
    torch._dynamo.reset()
    without = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(without),
        pytest.raises(UserError, match="compile: impossible") as caught,
    ):
        select_compilation(True, CPU, 0.0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_packs_of_any_size_and_all_layers_share_one_compilation(tmp_path):
    geometry = Geometry(layers=3, width=32, heads=2)
    path = tmp_path / "small.pt"
    write_random_checkpoint(path, geometry, seed=3)
    model = PackedESM2.from_fair_esm(load_state(path)[1], geometry)
    torch._dynamo.reset()
    counters.clear()
    model.compile_layers()
    with torch.inference_mode():
        for pack in range(20):
            lengths = [5 + pack, 3, 40 - 2 * pack]
            model.forward_packed(
                torch.full((sum(lengths),), 5),
                torch.cat([torch.arange(length) for length in lengths]),
                torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
                max(lengths),
                lengths=lengths,
            )
    # What comes before the attention of a layer, and what comes after it.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
