"""Which devices a command takes, on made-up machines: all, those that are named, or one line."""

import pynvml
import pytest

from packedesm.device.hardware import leased_device
from packedesm.device.places import Place, anywhere, find_places
from packedesm.errors import Fault, UserError
from tests.fake_cuda.nvml import Machine, MadeUpGpu, mig

A, B, C = (MadeUpGpu(seed) for seed in "abc")
SLOW, FAST = MadeUpGpu("slow", "NVIDIA T400"), MadeUpGpu("fast", "NVIDIA H100")
S1, S2 = mig("s1"), mig("s2")
NONE = {"absent": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this one a machine with these GPUs."""
    return lambda *gpus, **facts: Machine(list(gpus), **facts).install(monkeypatch)


def found(*arguments: str) -> dict[str, str]:
    return {place.label: place.device for place in find_places(*arguments)}


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_gpu_has_a_place(machine, device):
    machine(A, B, C)
    places = find_places(device)
    assert [place.label for place in places] == ["GPU 0", "GPU 1", "GPU 2"]
    assert anywhere(places) == ",".join((A.uuid, B.uuid, C.uuid))
    assert {place.kind for place in places} == {"cuda"}


def test_of_a_sliced_gpu_every_slice_has_a_place(machine, cuda_driver):
    machine(A, MadeUpGpu("sliced", slices=[S1, S2]))
    cuda_driver(A, S2)  # it shows one slice to who names none
    assert list(found("auto").values()) == [A.uuid, S2.uuid, S1.uuid]


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_gpus_there_is_one_place(machine, device):
    machine(**NONE)
    (place,) = find_places(device)
    assert (place.device, place.kind) == (device, "cpu")


def test_the_cpu_has_as_many_places_as_it_is_named(machine):
    machine(A, B)
    assert found("auto", "cpu") == {"CPU": "cpu"}
    assert found("cpu", "cpu, cpu") == {"CPU process 0": "cpu", "CPU process 1": "cpu"}
    assert anywhere(find_places("cpu", "cpu,cpu")) == "cpu"


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("named", ["2,0", f"{C.uuid}, {A.uuid[:12]}"])
def test_gpus_are_named_by_number_or_uuid(machine, named, device):
    machine(A, B, C)
    assert found(device, named) == {"GPU 2": C.uuid, "GPU 0": A.uuid}


def test_numbers_count_what_the_environment_shows(machine, monkeypatch):
    machine(A, B, C)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert found("auto", "0") == {"GPU 0": C.uuid}
    assert found("auto") == {"GPU 0": C.uuid, "GPU 1": B.uuid}


def test_on_mixed_cards_numbers_are_those_of_cuda(machine, cuda_driver):
    machine(SLOW, FAST)
    cuda_driver(FAST, SLOW)
    assert found("auto", "0") == {"GPU 0": FAST.uuid}
    assert found("auto") == {"GPU 0": FAST.uuid, "GPU 1": SLOW.uuid}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("auto", "7"), f"'7': names no GPU; those here are 0 NVIDIA H100 ({A.uuid}), 1 "),
        (("auto", "GPU-"), "--devices 'GPU-': names several GPUs; those here are 0 "),
        (("auto", "cuda"), "--devices 'cuda': names no GPU; those"),
        (("auto", ""), "--devices '': names no GPU; those"),
        (("auto", "0,,1"), "--devices '': names no GPU; those"),
        (("auto", "1,1"), "GPU 1 is named twice"),
        (("auto", f"1,{B.uuid}"), "GPU 1 is named twice"),
        (("auto", "0,cpu"), "--devices 0,cpu: names the CPU beside GPUs"),
        (("cpu", "0"), "--devices 0: device is cpu; name one of the two alone"),
        (("cuda", "cpu"), "--devices cpu: device is cuda; name one of the two alone"),
    ],
)
def test_what_cannot_be_meant_is_one_line(machine, arguments, words):
    machine(A, B)
    with pytest.raises(UserError) as caught:
        find_places(*arguments)
    assert words in str(caught.value)


def test_where_there_is_no_gpu_a_number_names_none_and_the_line_says_why(machine, monkeypatch):
    machine(A)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"'0': names no GPU; CUDA_VISIBLE_DEVICES hides every GPU"):
        find_places("auto", "0")


@pytest.mark.parametrize("devices", [None, "0"])
def test_a_torch_that_cannot_use_them_is_told(machine, devices):
    machine(A, torch_cuda=None)
    with pytest.raises(Fault, match="this torch cannot use a GPU"):
        find_places("auto", devices)


def test_a_process_that_may_choose_takes_one_of_the_named(machine, leases):
    busy, idle, other = MadeUpGpu("busy", processes=1), MadeUpGpu("idle"), MadeUpGpu("other")
    machine(other, busy, idle)
    with leased_device(anywhere(find_places("auto", "1,2"))) as device:
        assert device.uuid == idle.uuid


def test_a_device_that_is_held_is_given_again_and_let_go_once(machine, leases):
    machine(A)
    with leased_device(Place(A.uuid, "GPU 0").device) as first:
        with leased_device("cuda") as again:
            assert again is first
        with leased_device("auto") as still:
            assert still is first
    machine(**NONE)
    with leased_device("auto") as after:
        assert after.torch_device.type == "cpu"
