"""What is computed on a device, and how what is wrong there is told."""

import pytest
import torch

from packedesm.device import auto
from packedesm.doctor import devices as devices_module
from packedesm.doctor import trials
from packedesm.doctor.devices import _computing, devices
from packedesm.doctor.probe import Answer
from packedesm.errors import Fault
from packedesm.esm2 import fused, int8, kernels
from packedesm.esm2.attention import PREFERENCE
from packedesm.esm2.int8 import INT8
from packedesm.esm2.registry import DEMO
from tests.esm2.test_kernels import HERE
from tests.fake_cuda.attention import install_stand_ins
from tests.fake_cuda.models import fake_model

pytestmark = pytest.mark.usefixtures("one_thread")
ON_GPUS = [name for name in trials.FORMATS if name != INT8]


@pytest.fixture(scope="module")
def told() -> list[dict]:
    """What is told of this machine's CPU."""
    return list(trials.machine("cpu"))


def findings(told) -> dict:
    return {finding.name: finding for finding in devices(Answer([*told], None))}


def wrong_by(monkeypatch, factor: float) -> None:
    """Let every model but that with which they are compared scale one layer."""
    real = auto.load_model

    def load(*arguments):
        model = real(*arguments)
        model.layers[2].fc2.weight *= factor
        return model

    monkeypatch.setattr(auto, "load_model", load)


@pytest.mark.parametrize(("factor", "wrong"), [(1.01, ["float32"]), (1.3, trials.FORMATS)])
def test_a_device_that_computes_wrong_is_told_in_each_number_format(monkeypatch, factor, wrong):
    wrong_by(monkeypatch, factor)
    found = findings(trials.machine("cpu"))
    for dtype in trials.FORMATS:
        finding = found[f"CPU {dtype}"]
        if "lacking" in finding.facts:
            continue
        amiss = "fault" if dtype == "float32" else "note"
        assert finding.status == (amiss if dtype in wrong else "ok")
    assert "does not work: off by" in found["CPU float32"].said


def test_vectors_that_are_no_numbers_are_told(monkeypatch):
    wrong_by(monkeypatch, float("nan"))
    said = findings(trials.machine("cpu"))["CPU float16"].said
    assert said.startswith("does not work: off by nan")


def test_a_backend_that_computes_wrong_is_a_note(monkeypatch):
    real = trials.attend

    def attend(backend, q, *given):
        return real(backend, q, *given) * (1.1 if q.dtype == torch.float16 else 1)

    monkeypatch.setattr(trials, "attend", attend)
    finding = findings(trials.machine("cpu"))["CPU attention"]
    assert finding.status == "note" and "sdpa in float16 does not work: off by" in finding.said


def test_a_kernel_that_was_not_compiled_is_a_note_with_what_to_do(monkeypatch, told):
    assert findings(told)["kernels"].status == "ok"
    monkeypatch.setattr(kernels, "_library", lambda: None)
    found = findings(trials.machine("cpu"))
    assert found["kernels"].status == "note"
    assert "not compiled when packedesm was installed" in found["kernels"].said
    assert "C++ compiler" in found["kernels"].advice
    assert found["CPU float32"].facts["backend"] == "sdpa"


@pytest.mark.cpu
def test_int8_is_tried_where_the_cpu_has_kernels_for_it(told):
    (fact,) = [fact for fact in told if fact.get("dtype") == INT8]
    finding = findings(told)["CPU int8"]
    assert finding.status == "ok"
    if HERE in int8._LIBRARIES:
        # Further off than float32 could be, so that it was no other format that was tried.
        assert 1e-3 < fact["relative_l2"] < 0.02 and finding.said.startswith("works: off by")
    else:
        assert "not here: dtype int8: its kernels need" in finding.said


def test_nothing_of_what_is_tried_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "CPU int8" in findings(trials.machine("cpu"))
    assert not [*tmp_path.rglob("*")]


def test_int8_without_a_kernel_is_told_as_what_is_not_here(monkeypatch):
    monkeypatch.setattr(int8, "_library", lambda: None)
    said = findings(trials.machine("cpu"))["CPU int8"].said
    assert said.startswith("not here: dtype int8:") and said.endswith("say float32, or bfloat16")


def test_int8_is_not_tried_on_a_gpu():
    checkpoint = trials.prepare(DEMO, "auto")
    (refusal,) = trials._pass(checkpoint, INT8, torch.device("cuda", 0), None, False).values()
    assert refusal == "dtype int8: its kernels run on a CPU; say float16"


def test_a_cpu_that_has_no_kernels_is_no_fault_of_the_installation(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    found = findings(trials.machine("cpu"))["kernels"]
    assert found.status == "ok" and "it needs a CPU with AVX-512 or AVX2" in found.said


def test_kernels_that_could_not_be_compiled_are_a_note():
    """As on a node with a GPU and no C compiler."""
    fact = {"dtype": "float16", "automatic": True, "relative_l2": 1e-3, "backend": "torch_varlen"}
    fact["slow"] = None
    told = [{**fact, "kernels": "torch", "unfused": "Triton's kernel rotate_ does not work here"}]
    (finding,) = _computing("GPU", "GPU 0", Answer(told, None), vital=False)
    assert finding.status == "note" and "rotate_" in finding.said and "gcc" in finding.advice


def test_a_lease_that_has_no_place_is_told(monkeypatch):
    def refuse():
        raise Fault("/tmp: cannot hold the lease of a GPU (Read-only file system); set TMPDIR")

    monkeypatch.setattr(devices_module, "lease_folder", refuse)
    _driver, leases = devices_module._gpus(Answer([], None), [{"uuid": "GPU-1"}])
    assert (leases.status, leases.advice) == ("fault", "set TMPDIR")
    assert leases.said == "/tmp: cannot hold the lease of a GPU (Read-only file system)"


def test_memory_that_is_short_is_told_as_that_and_the_rest_is_tried(monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(trials, "_pass", short)
    found = findings(trials.machine("cpu"))
    assert found["CPU bfloat16"].said == "does not work: out of memory"
    assert found["CPU attention"].status == "ok"


@pytest.mark.parametrize("dtype", ON_GPUS)
@pytest.mark.parametrize("backend", PREFERENCE["cuda"])
def test_attention_is_tried_on_the_gpu(monkeypatch, fake_cuda, backend, dtype):
    """Rehearsed without numbers: what is compared is of the GPU, and of one shape."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    install_stand_ins(monkeypatch)
    pairs = []
    monkeypatch.setattr(
        trials, "_distance", lambda _dtype, *pair: pairs.append(pair) or {"relative_l2": 0.0}
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = trials._attention(backend, dtype, fake_cuda)
    if "lacking" in told:
        assert (backend, dtype) not in {("sdpa", dtype), ("fa3", "bfloat16")}
        return
    ((found,), (expected,)) = pairs[0]
    assert found.shape == expected.shape == (178, 2, 64)


@pytest.mark.parametrize("dtype", ON_GPUS)
def test_a_pack_is_tried_on_the_gpu(monkeypatch, fake_cuda, dtype):
    """Rehearsed in the same way."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(
        auto,
        "load_model",
        lambda used, dtype, device, _heads: fake_model(used.geometry, dtype, device),
    )
    pairs = []
    monkeypatch.setattr(trials, "_distance", lambda _dtype, *pair: pairs.append(pair) or {})
    checkpoint = trials.prepare(DEMO, "auto")
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = trials._pass(checkpoint, dtype, fake_cuda, torch.zeros(178, 192), True)
    assert told["backend"] == ("memory_efficient" if dtype == "float32" else "torch_varlen")
    assert told["kernels"] == "torch" and told["unfused"]
    found, expected = pairs[0]
    assert [x.shape for x in found] == [x.shape for x in expected]


def test_only_the_default_format_waits_for_kernels_to_be_compiled(monkeypatch, told):
    asked = []

    def select(_geometry, dtype, _device, demanded):
        asked.append((str(dtype).removeprefix("torch."), demanded))
        return fused.Selection(fused.TORCH, "no compiler")

    monkeypatch.setattr(trials, "select_kernels", select)
    list(trials.machine("cpu"))
    assert asked[:3] == [("float32", "triton"), ("float16", "torch"), ("bfloat16", "torch")]
    assert {kernels for _dtype, kernels in asked[3:]} <= {"torch"}


def test_a_damaged_file_of_a_model_is_told_and_a_large_one_read_if_asked_to(tmp_path, monkeypatch):
    (tmp_path / "esm2_t6_8M_UR50D.pt").write_bytes(b"half a download")
    damaged, demo = (
        fact for fact in trials.checkpoints(str(tmp_path), DEMO, "no") if "model" in fact
    )
    if damaged["model"] == DEMO:
        damaged, demo = demo, damaged
    assert "md5 is" in damaged["fault"] and "packedesm fetch esm2_t6_8M" in damaged["fault"]
    assert demo["digest"] == "none published" and len(demo["sha256"]) == 64
    monkeypatch.setattr(trials, "_QUICK_BYTES", 10)
    for read_all, digest in (("no", "not read"), ("yes", "none published")):
        facts = [x for x in trials.checkpoints(str(tmp_path), DEMO, read_all) if "model" in x]
        assert [x["digest"] for x in facts if x["model"] == DEMO] == [digest]
        (damaged,) = [x for x in facts if x["model"] != DEMO]
        assert "fault" in damaged  # seen without reading all of it, too
