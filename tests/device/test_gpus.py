"""Which GPUs a process may use, on made-up machines and under what the environment says of them."""

import pynvml
import pytest

from packedesm.device.gpus import gpu_count, shard_count, visible_gpus
from packedesm.device.nvml import Gpu, inventory
from tests.fake_cuda.nvml import REFUSALS, Machine, MadeUpGpu, mig

A, B, C = (MadeUpGpu(seed) for seed in "abc")
SLOW, FAST = MadeUpGpu("slow", "NVIDIA T400"), MadeUpGpu("fast", "NVIDIA H100")
LOST = MadeUpGpu("lost", lost=True)
S1, S2 = mig("s1"), mig("s2")
SLICED = MadeUpGpu("sliced", "NVIDIA A100", slices=[S1, S2])
LEGACY = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"  # as drivers before 470 named slices

# The GPUs in NVML's order, and in CUDA's.
MACHINES = {
    "alike": ([A, B, C], [A, B, C]),
    "one lost": ([A, LOST, C], [A, C]),
    "mixed": ([SLOW, FAST], [FAST, SLOW]),
    "in slices": ([A, SLICED], [A, S1]),  # CUDA shows one slice to who names none
    "one": ([A], [A]),
    "eight": ([MadeUpGpu(str(n)) for n in range(8)],) * 2,
}
NO_DRIVER = Machine([], absent=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def entries(*gpus: MadeUpGpu) -> list[str]:
    return [gpu.uuid for gpu in gpus]


@pytest.mark.parametrize(
    ("machine", "wanted", "expected"),
    [
        ("alike", None, entries(A, B, C)),
        ("alike", "0,2", entries(A, C)),
        ("alike", "2,0", entries(C, A)),
        ("alike", " 1 , 2", entries(B, C)),
        ("alike", "1,9,0", entries(B)),  # CUDA stops at the first entry that can be none
        ("alike", "9", []),
        ("alike", "1,1", entries(B)),
        ("alike", B.uuid, entries(B)),
        ("alike", f"{B.uuid[:8]},{A.uuid}", entries(B, A)),
        ("alike", "GPU-", []),  # could be any
        ("alike", "", []),
        ("alike", "-1", []),
        ("alike", "-1,0", []),
        ("alike", "NoDevFiles", []),
        ("alike", "none", []),
        ("alike", "all", []),  # NVIDIA's container variables know it, CUDA does not
        ("alike", "GPU-0123", ["GPU-0123"]),  # NVML knows it not: CUDA decides
        ("alike", LEGACY, [LEGACY]),
        ("one lost", None, entries(A, C)),
        ("one lost", "1", entries(C)),  # CUDA counts without it
        ("one lost", C.uuid, entries(C)),
        ("mixed", None, entries(SLOW, FAST)),
        ("mixed", "0", entries(FAST)),
        ("mixed", "1,0", entries(SLOW, FAST)),
        ("mixed", SLOW.uuid, entries(SLOW)),
        ("in slices", None, entries(A, S1, S2)),
        ("in slices", S2.uuid, entries(S2)),
        ("in slices", S2.uuid[:9], entries(S2)),
        ("in slices", f"{S2.uuid},{S1.uuid}", entries(S2, S1)),
        ("in slices", "0", entries(A)),
        ("in slices", "1", entries(S1)),
        ("one", None, entries(A)),
        ("one", "0", entries(A)),
        ("eight", None, entries(*MACHINES["eight"][0])),
        ("eight", "7,3", entries(MACHINES["eight"][0][7], MACHINES["eight"][0][3])),
    ],
)
def test_a_process_may_use_what_cuda_would_show_it(
    machine, wanted, expected, monkeypatch, cuda_driver
):
    by_nvml, by_cuda = MACHINES[machine]
    Machine(by_nvml).install(monkeypatch)
    cuda_driver(*by_cuda)
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [gpu.uuid for gpu in visible_gpus().gpus] == expected


def test_numbers_count_by_bus_where_cuda_is_told_so(monkeypatch, cuda_driver):
    Machine([SLOW, FAST]).install(monkeypatch)
    cuda_driver(SLOW, FAST)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [gpu.uuid for gpu in visible_gpus().gpus] == entries(SLOW)


@pytest.mark.parametrize("gpus", [[SLOW, FAST], [LOST, A, C], [A, SLICED]])
def test_where_the_driver_does_not_answer_numbers_stand_for_themselves(monkeypatch, tmp_path, gpus):
    """CUDA may start all the same, an old one for instance, and has another order than NVML."""
    Machine(gpus).install(monkeypatch)
    (tmp_path / "libcuda.so.1").write_text("is no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [gpu.uuid for gpu in visible_gpus().gpus] == ["1", "0"]


@pytest.mark.parametrize(
    ("machine", "variables", "expected", "words"),
    [
        (NO_DRIVER, {}, False, "NVML Shared Library Not Found"),
        (Machine([], control=True, absent=NO_DRIVER.absent), {}, True, "but /dev/null is there"),
        (Machine([]), {}, False, "the driver shows none"),
        (Machine([A]), {"CUDA_VISIBLE_DEVICES": ""}, False, "CUDA_VISIBLE_DEVICES hides every GPU"),
        (Machine([A]), {"CUDA_VISIBLE_DEVICES": "5"}, True, "CUDA_VISIBLE_DEVICES=5"),
        (NO_DRIVER, {"SLURM_JOB_GPUS": "0"}, True, "SLURM_JOB_GPUS=0"),
        (NO_DRIVER, {"SLURM_STEP_GPUS": "1"}, True, "SLURM_STEP_GPUS=1"),
        (Machine([LOST]), {}, True, "GPU 0: GPU is lost"),
        (Machine([MadeUpGpu("x", slices=[])]), {}, True, "is in MIG mode and has no slice"),
        (Machine([], absent=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), {}, True, "mismatch"),
    ],
)
def test_where_there_is_none_it_is_told_why_and_whether_there_should_be(
    machine, variables, expected, words, monkeypatch
):
    machine.install(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = visible_gpus()
    assert found.gpus == ()
    assert found.expected is expected
    assert words in found.reason


def test_without_nvml_an_entry_stands_for_itself(monkeypatch):
    """As in a container that was given CUDA and not NVML."""
    NO_DRIVER.install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-12")
    assert visible_gpus().gpus == (Gpu("0", "0"), Gpu("GPU-12", "GPU-12"))
    assert str(Gpu("0", "0")) == "entry 0 of CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("0,-1,1", ["0"]), ("1,,0", ["1"]), ("0,garbage", ["0"]), ("garbage", []), ("0x1", [])],
)
def test_without_nvml_what_can_be_no_entry_is_none(monkeypatch, wanted, expected):
    """Else `shards: auto` counts it, and a job tries it for minutes."""
    NO_DRIVER.install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    visible = visible_gpus()
    assert [gpu.uuid for gpu in visible.gpus] == expected
    assert visible.expected and visible.reason.startswith(f"CUDA_VISIBLE_DEVICES={wanted} gives")


@pytest.mark.parametrize(
    "reading",
    [
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMigMode",
    ],
)
@pytest.mark.parametrize("error", REFUSALS)
def test_a_refused_reading_hides_neither_its_gpu_nor_another(reading, error, monkeypatch):
    odd = MadeUpGpu("odd", refused={reading: error})
    Machine([A, odd]).install(monkeypatch)
    whole, found = inventory().gpus
    assert whole == Gpu(A.uuid, A.name, 80 << 30, 80 << 30, 0)
    memory = None if reading == "nvmlDeviceGetMemoryInfo" else 80 << 30
    assert (found.uuid, found.memory_bytes, found.free_bytes) == (odd.uuid, memory, memory)
    assert found.processes == (None if reading.endswith("Processes") else 0)
    assert found.name == (odd.uuid if reading == "nvmlDeviceGetName" else odd.name)


def test_a_lost_gpu_is_named_and_hides_no_other(monkeypatch):
    Machine([A, LOST, C]).install(monkeypatch)
    found = visible_gpus()
    assert [gpu.uuid for gpu in found.gpus] == entries(A, C)
    assert found.unread == ("GPU 1: GPU is lost",)


def test_shards_are_one_per_visible_gpu_or_as_asked(monkeypatch):
    Machine([A, LOST, C]).install(monkeypatch)
    assert shard_count("auto", "auto") == shard_count("auto", "cuda") == gpu_count("auto") == 2
    assert shard_count("auto", "cpu") == 1
    assert gpu_count("cpu") == 0
    assert shard_count(7, "auto") == 7
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shard_count("auto", "auto") == 1


@pytest.mark.gpu
def test_the_driver_and_nvml_know_the_same_gpus():
    from packedesm.device.driver import uuids_in_cuda_order

    visible = visible_gpus()
    if not visible.gpus:
        pytest.skip(visible.reason)
    by_cuda = uuids_in_cuda_order()
    assert set(by_cuda) <= {gpu.uuid.partition("-")[2] for gpu in inventory().gpus}
