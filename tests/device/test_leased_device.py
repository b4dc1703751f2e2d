"""The device of a job on made-up machines, and why a job fails that should have one."""

import os
import subprocess
import sys

import pynvml
import pytest
import torch

from packedesm.device import trial
from packedesm.device.auto import resolve_dtype
from packedesm.device.gpus import visible_gpus
from packedesm.device.hardware import check_dtype, leased_device
from packedesm.device.lease import lease
from packedesm.device.nvml import inventory
from packedesm.errors import Fault, UserError
from tests.fake_cuda.nvml import Machine, MadeUpGpu, mig

ECC = "CUDA error: uncorrectable ECC error encountered"
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"  # another's, exclusive
OLD = "The NVIDIA driver on your system is too old (found version 11040)."
NO_DRIVER = {"absent": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}


pytestmark = pytest.mark.usefixtures("leases")


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this one a machine with these GPUs."""
    return lambda *gpus, **facts: Machine(list(gpus), **facts).install(monkeypatch)


def taken(device: str = "auto") -> str | None:
    with leased_device(device) as found:
        return found.uuid


def test_a_job_computes_on_the_gpu_that_it_has_leased(machine):
    slow, fast = MadeUpGpu("slow", "NVIDIA T400"), MadeUpGpu("fast", "NVIDIA H100", used=1)
    made_up = machine(slow, fast, cuda_order=["fast", "slow"])
    with leased_device() as device:
        assert device.torch_device == torch.device("cuda", 0)
        assert made_up.cuda(device.torch_device) is slow
        assert (device.uuid, device.name) == (slow.uuid, slow.name)


def test_a_number_on_mixed_cards_means_cudas(machine, monkeypatch, cuda_driver):
    slow, fast = MadeUpGpu("slow", "NVIDIA T400"), MadeUpGpu("fast", "NVIDIA H100")
    made_up = machine(slow, fast, cuda_order=["fast", "slow"])
    cuda_driver(fast, slow)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert taken() == made_up.cuda().uuid == fast.uuid


def test_a_slice_is_used(machine, monkeypatch):
    small, large = mig("small"), mig("large")
    made_up = machine(MadeUpGpu("a", slices=[small, large]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", large.uuid)
    assert taken() == made_up.cuda().uuid == large.uuid


def test_jobs_side_by_side_take_slices_of_their_own(machine):
    slices = [mig("small"), mig("large")]
    machine(MadeUpGpu("a", slices=slices))
    with lease(inventory().gpus) as first:
        assert {first.uuid, taken()} == {found.uuid for found in slices}


def test_an_entry_that_nvml_does_not_know_is_tried(machine, monkeypatch):
    made_up = machine(MadeUpGpu("a"), MadeUpGpu("b"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8932f937/1/0")
    with pytest.raises(Fault, match="MIG-GPU-8932f937/1/0: No CUDA GPUs are available"):
        taken()
    assert made_up.started_with == "MIG-GPU-8932f937/1/0"


def test_another_users_gpu_is_left_alone_while_one_is_idle(machine):
    busy, idle = MadeUpGpu("busy", used=70 << 30, processes=1), MadeUpGpu("idle")
    machine(busy, idle)
    assert taken() == idle.uuid


@pytest.mark.parametrize("fault", [ECC, BUSY, "dies"])
def test_a_gpu_that_fails_its_product_is_named_and_the_next_one_used(machine, fault, caplog):
    bad, good = MadeUpGpu("bad", fault=fault), MadeUpGpu("good")
    made_up = machine(bad, good)
    assert taken() == made_up.cuda().uuid == good.uuid
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    reason = "the process that tried it ended with status -6" if fault == "dies" else fault
    assert warning.message == f"NVIDIA H100 ({bad.uuid}) cannot be used: {reason}"


def test_a_gpu_that_hangs_is_left_behind(machine, monkeypatch):
    hanging, good = MadeUpGpu("hanging", fault="hangs"), MadeUpGpu("good")
    machine(hanging, good)
    monkeypatch.setattr(trial, "_SECONDS", 0.5)
    assert taken() == good.uuid


def test_if_no_gpu_works_each_has_its_reason(machine):
    bad, busy = MadeUpGpu("bad", fault=ECC), MadeUpGpu("busy", fault=BUSY)
    machine(bad, busy)
    with pytest.raises(Fault) as caught:
        taken()
    reasons = f"NVIDIA H100 ({bad.uuid}): {ECC}; NVIDIA H100 ({busy.uuid}): {BUSY}"
    assert str(caught.value).startswith(f"no GPU can be used: {reasons}; torch ")
    assert "install" not in str(caught.value)  # driver and torch fit


def test_a_gpu_without_memory_of_its_own_is_used(machine):
    unified = MadeUpGpu(
        "GB10", refused={"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}
    )
    machine(unified)
    assert taken() == unified.uuid


def test_a_lost_gpu_is_named_and_another_one_used(machine, caplog):
    lost, good = MadeUpGpu("lost", lost=True), MadeUpGpu("good")
    machine(lost, good)
    assert taken() == good.uuid
    assert "a GPU cannot be read and is left out: GPU 0: GPU is lost" in caplog.messages


def test_a_lease_in_the_same_process_is_of_the_same_gpu(machine):
    """CUDA has started on it, and can start on no other."""
    first, second = MadeUpGpu("first"), MadeUpGpu("second")
    machine(first, second)
    assert taken() == first.uuid
    first.used, first.processes = 40 << 30, 1
    assert taken() == first.uuid


def test_a_process_that_has_used_another_gpu_before_is_told(machine):
    busy, idle = MadeUpGpu("busy", processes=1), MadeUpGpu("idle")
    made_up = machine(busy, idle)
    made_up.cuda()  # with both to be seen
    with pytest.raises(Fault, match=r"has used CUDA before, .* set CUDA_VISIBLE_DEVICES"):
        taken()


@pytest.mark.parametrize(
    ("facts", "variables", "words"),
    [
        (
            {"driver": "470.57", "driver_cuda": 11040},
            {},
            ["driver 470.57 supports CUDA 11.4", OLD, "install"],
        ),
        ({"torch_cuda": None}, {}, ["this torch cannot use", "550.54.15", "for CPUs", "fit"]),
        (
            NO_DRIVER,
            {"CUDA_VISIBLE_DEVICES": "0"},
            ["entry 0 of CUDA_VISIBLE_DEVICES: No CUDA GPUs are available"],
        ),
        (NO_DRIVER, {"SLURM_JOB_GPUS": "0"}, ["SLURM_JOB_GPUS=0", "no NVIDIA driver answers"]),
        ({"absent": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}, {}, ["mismatch"]),
        (
            {},
            {"CUDA_VISIBLE_DEVICES": "7"},
            ["CUDA_VISIBLE_DEVICES=7 gives no", "has NVIDIA H100 (GPU-"],
        ),
    ],
    ids=["driver too old", "torch for CPUs", "no driver", "Slurm", "mismatch", "not there"],
)
def test_a_gpu_that_is_shown_and_cannot_be_used_fails_the_job_in_one_line(
    facts, variables, words, machine, monkeypatch
):
    none = facts.get("absent") == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    old = facts.get("driver_cuda") == 11040
    machine(*([] if none else [MadeUpGpu("a", fault=OLD if old else None)]), **facts)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Fault) as caught:
        taken()
    for word in [*words, "device: cpu", torch.__version__]:
        assert word in str(caught.value)
    assert taken("cpu") is None


@pytest.mark.parametrize("variables", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_where_there_is_no_gpu_the_cpu_is_taken_unless_cuda_is_asked_for(
    variables, machine, monkeypatch, caplog
):
    caplog.set_level("INFO")
    machine(**NO_DRIVER)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with leased_device() as device:
        assert device.describe()["kind"] == "cpu"
    why = "hides every GPU" if variables else "no NVIDIA GPU: NVML Shared Library Not Found"
    assert why in caplog.messages[0]
    with pytest.raises(UserError, match=f"^device is cuda: .*{why}"):
        taken("cuda")


def test_the_cpu_is_taken_where_it_is_asked_for(machine, caplog):
    caplog.set_level("INFO")
    made_up = machine(MadeUpGpu("a"))
    assert taken("cpu") is None
    assert caplog.messages == ["running on the CPU: device is cpu"]
    assert made_up.started_with is None
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_lease_ends_with_the_job_also_with_one_that_could_not_begin(machine):
    only = MadeUpGpu("only", fault=ECC)
    machine(only)
    with pytest.raises(Fault, match=ECC):
        taken()
    only.fault = None
    assert taken() == taken() == only.uuid


@pytest.mark.parametrize(
    ("capability", "dtype", "refused"),
    [
        ((7, 5), "bfloat16", True),
        ((7, 5), "float16", False),
        ((8, 0), "bfloat16", False),
        ((12, 0), "bfloat16", False),
    ],
)
def test_bfloat16_is_refused_where_the_gpu_has_none(capability, dtype, refused, machine):
    machine(MadeUpGpu("a", "Tesla T4", capability=capability))
    device = torch.device("cuda", 0)
    if not refused:
        assert resolve_dtype(dtype, device)[0] == dtype
        return
    words = r"dtype bfloat16: Tesla T4 .* capability 7\.5, .* 8\.0\); name float16 or float32"
    with pytest.raises(UserError, match=words):
        resolve_dtype(dtype, device)


def test_a_cpu_computes_in_every_dtype():
    for dtype in ("float32", "float16", "bfloat16"):
        check_dtype(torch.device("cpu"), dtype)


def test_a_small_product_is_right_on_a_device_that_works():
    assert trial.product_fault(torch.device("cpu")) is None


def test_a_wrong_product_is_noticed(monkeypatch):
    class Wrong(torch.Tensor):
        def __matmul__(self, other):
            product = torch.Tensor.__matmul__(self.as_subclass(torch.Tensor), other)
            if product.is_floating_point():
                product[3, 4] += 1
            return product

    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *arguments: to(*arguments).as_subclass(Wrong))
    fault = trial.product_fault(torch.device("cpu"))
    assert fault == "multiplies wrongly: 1 of 65536 numbers"


def test_the_process_that_tries_tells_what_torch_says():
    """No torch has a GPU here: that of a CPU has no CUDA, that of a GPU sees none."""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(trial._COMMAND, env=hidden, capture_output=True, text=True)
    assert found.returncode == 1
    (line,) = found.stdout.splitlines()
    assert "CUDA" in line


def test_nothing_touches_cuda_before_the_lease():
    """What CUDA shows is settled when it starts: an import that starts it would settle it."""
    code = """
import ctypes, sys
import torch
def touched(*_):
    raise SystemExit("CUDA was touched")
names = [n for n in dir(torch.cuda) if n in ("is_available", "device_count", "init", "_lazy_init",
         "get_device_properties", "current_device", "set_device")]
for name in names:
    setattr(torch.cuda, name, touched)
for name in dir(torch._C):
    if name.startswith("_cuda_") and "Count" in name:
        setattr(torch._C, name, touched)
import packedesm.pipeline, packedesm.embedding.job, packedesm.device.trial
print(len(names))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "7\n"), found.stderr


@pytest.mark.gpu
def test_cuda_shows_a_real_job_the_gpu_that_it_has_leased():
    visible = visible_gpus()
    if not visible.gpus:
        pytest.skip(visible.reason)
    code = """
import torch
from packedesm.device.hardware import leased_device
with leased_device("cuda") as device:
    print(torch.cuda.device_count(), device.uuid, torch.cuda.get_device_properties(0).uuid)"""
    count, leased, shown = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert count == "1"
    assert leased.partition("-")[2] == shown


@pytest.mark.gpu
def test_a_real_gpu_passes_its_trial():
    visible = visible_gpus()
    if not visible.gpus:
        pytest.skip(visible.reason)
    assert trial.trial_in_a_process(visible.gpus[0]) is None
