"""`packedesm doctor` on machines of all kinds: what is amiss is told, with what to do."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata

import pynvml
import pytest

from packedesm.cli import main
from packedesm.doctor import devices, probe
from packedesm.doctor.probe import Probe
from packedesm.esm2.registry import DEMO
from tests.commands import the_line
from tests.doctor.made_up import processes_on
from tests.fake_cuda.nvml import Machine, MadeUpGpu

NO_DRIVER = {"absent": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}
OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Return a function that asks on a machine: exit status, findings by name, standard error."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def ask(machine: Machine, *more: str) -> tuple[int, dict[str, dict], str]:
        machine.install(monkeypatch)
        monkeypatch.setattr(probe, "_started", processes_on(machine))
        arguments = ["-o", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "ck"), *more]
        status = main(["doctor", "--json", *arguments])
        printed = capsys.readouterr()
        answer = json.loads(printed.out)
        assert answer["works"] is (status == 0)
        assert not (tmp_path / "out").exists() and not (tmp_path / "ck").exists()
        for finding in answer["findings"]:
            assert finding["advice"] or finding["status"] == "ok"
        return status, {finding["name"]: finding for finding in answer["findings"]}, printed.err

    return ask


def amiss(found: dict[str, dict], status: str = "fault") -> list[str]:
    return [name for name, finding in found.items() if finding["status"] == status]


def test_a_machine_without_a_gpu_runs_on_its_cpu(doctor):
    """Also where torch is built for CUDA."""
    status, found, error = doctor(Machine([], **NO_DRIVER))
    assert (status, error) == (0, "")
    assert "runs use the CPU: no NVIDIA GPU: NVML Shared Library" in found["device"]["said"]
    assert found["torch"]["facts"] == {"version": metadata.version("torch"), "cuda": "12.8"}
    assert found["driver"]["said"] == "no NVIDIA driver answers"
    assert amiss(found) == amiss(found, "note") == []
    assert "default" in found["CPU float32"]["said"]
    assert 0 < found["CPU bfloat16"]["facts"]["relative_l2"] < 0.02
    assert found[DEMO]["facts"]["digest"] == "none published"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine([MadeUpGpu("a")], torch_cuda=None), "this torch cannot use a GPU"),
        (Machine([], absent=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), "mismatch"),
        (Machine([], control=True, **NO_DRIVER), "but /dev/null is there"),
        (Machine([MadeUpGpu("a", fault=OLD)], driver="470.57", driver_cuda=11040), OLD),
        (Machine([MadeUpGpu("a", fault="dies")]), "signal SIGABRT while starting CUDA"),
        (Machine([MadeUpGpu("a", fault="hangs")]), "no answer within 5 s while starting CUDA"),
        (Machine([MadeUpGpu("a", lost=True)]), "GPU 0: GPU is lost"),
    ],
    ids=["torch for CPUs", "mismatch", "no NVML", "old", "dies", "hangs", "lost"],
)
def test_a_gpu_that_no_job_can_use_is_told_and_the_cpu_can_be(
    doctor, machine, words, monkeypatch, request
):
    monkeypatch.setattr(devices, "_GPU_SECONDS", 5)
    status, found, error = doctor(machine)
    assert status == 1
    assert the_line(error).startswith("packedesm: a run would not work here")
    assert {found[name]["part"] for name in amiss(found)} == {"GPU"}
    assert words in " ".join(found[name]["said"] for name in amiss(found))
    unfit = machine.driver_cuda < 12000 or machine.torch_cuda is None
    assert (amiss(found, "note") == ["driver"]) == unfit
    if "lost" in request.node.name:
        status, found, _ = doctor(machine, "--device", "cpu")
        assert (status, amiss(found)) == (0, [])
        assert found["device"]["said"] == "runs use the CPU: device is cpu"


def test_processes_that_hang_are_waited_for_together(monkeypatch):
    def hanging(_arguments, environment):
        return subprocess.Popen(["sleep", "60"], env=environment, stdout=subprocess.PIPE)

    monkeypatch.setattr(probe, "_started", hanging)
    processes = [Probe("gpu") for _ in range(4)]
    start = time.monotonic()
    answers = [process.answer(1) for process in processes]
    assert {answer.broken for answer in answers} == {"no answer within 1 s while starting Python"}
    assert time.monotonic() - start < 3


def test_a_process_that_cannot_be_started_is_told(monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(probe, "_started", refuse)
    assert Probe("gpu").answer(1).broken == (
        "no process could be started (Resource temporarily unavailable)"
    )


def test_of_several_gpus_one_that_works_is_enough(doctor):
    bad, good = MadeUpGpu("bad", fault="dies"), MadeUpGpu("good", used=30 << 30, processes=2)
    status, found, error = doctor(Machine([good, bad, MadeUpGpu("lost", lost=True)]))
    assert (status, error) == (0, "")
    assert amiss(found, "note") == ["not readable", "GPU 1"]
    assert (
        "SIGABRT" in found["GPU 1"]["said"] and "CUDA_VISIBLE_DEVICES" in found["GPU 1"]["advice"]
    )
    assert found["GPU 0"]["said"] == (
        "NVIDIA H100, 53.7 GB of 85.9 GB free, used by 2 other processes, compute capability 9.0"
    )
    assert found["GPU 0"]["facts"]["free_bytes"] == 50 << 30
    said = "NVIDIA's 550.54.15, for CUDA up to 12.4, which fits this torch"
    assert found["driver"]["said"] == said
    assert found["GPU 0 float16"]["status"] == "ok"


def test_cuda_that_is_asked_for_and_not_there_is_told(doctor):
    status, found, _ = doctor(Machine([], **NO_DRIVER), "--device", "cuda")
    assert status == 1
    assert "device is cuda: no NVIDIA GPU" in found["device"]["said"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("import os; os.abort()", "signal SIGABRT while importing torch"),
        ("raise OSError('libcudnn.so.9: cannot open')", "OSError: libcudnn.so.9: cannot open"),
    ],
)
def test_a_torch_that_crashes_or_lacks_a_library_is_told(
    tmp_path, monkeypatch, capsys, module, words
):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text(module)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{before}")
    assert main(["doctor", "-o", str(tmp_path), "--checkpoints", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("!!!")]
    assert words in lines[place] and "cannot be used" in lines[place]
    assert lines[place + 1].strip().startswith("-> install torch")
    assert lines[-1].startswith("a run would not work here: see !!!")


def test_it_works_without_network_home_and_standard_output(tmp_path):
    """As a job of a user whose home is not there, on a node that is cut off."""
    asked = tmp_path / "asked"
    modules = tmp_path / "modules"
    modules.mkdir()
    # Python imports it at the start of each process.
    (modules / "sitecustomize.py").write_text(f"""
import socket
def cut(*_):
    open({str(asked)!r}, "w").close()
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = cut""")
    code = """
import sys
from packedesm.cli import main
status = main(sys.argv[1:])
print("torch" in sys.modules, file=sys.stderr)
raise SystemExit(status)"""
    environment = {key: text for key, text in os.environ.items() if not key.startswith("XDG_")}
    environment |= {"HOME": "/proc/none", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = f"{modules}:{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(
        ["bash", "-c", '"$@" >&-', "-", sys.executable, "-c", code, "doctor", "-o", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    # To the end; that nobody could read it is what is amiss.
    closed = "packedesm: standard output: is closed; send it to a file or a program\n"
    assert (done.returncode, done.stderr) == (1, f"{closed}False\n")
    assert not asked.exists()


def test_a_model_that_is_unknown_is_the_users_mistake(capsys):
    assert main(["doctor", "--model", "esm2_t33_650M_UR50"]) == 2
    assert "did you mean esm2_t33_650M_UR50D" in the_line(capsys.readouterr().err)


def test_the_json_has_the_shape_that_is_documented(doctor):
    from packedesm.doctor.findings import FORMAT, Finding, as_json
    from tests.workflow import ROOT

    finding = Finding("CPU", "kernels", "said", "advice", "note", {"a": 1})
    assert json.loads(as_json([finding])) == {
        "format": FORMAT,
        "works": True,
        "findings": [
            {
                **{"part": "CPU", "name": "kernels", "said": "said", "advice": "advice"},
                **{"status": "note", "facts": {"a": 1}},
            }
        ],
    }
    document = (ROOT / "docs" / "cluster.md").read_text()
    for word in (
        "format",
        "works",
        "findings",
        "part",
        "name",
        "said",
        "advice",
        "status",
        "facts",
    ):
        assert f"`{word}`" in document


def test_where_a_cluster_lacks_its_plugin_it_is_told(tmp_path, monkeypatch):
    from packedesm.doctor.software import cluster, software

    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(metadata, "distributions", lambda: [])
    scheduler, plugins = cluster()
    assert scheduler.facts["submit"] == {"Slurm": str(tmp_path / "sbatch")}
    assert plugins.status == "note" and "pip install" in plugins.advice
    real = metadata.version

    def without(name: str) -> str:
        if name == "pyfaidx":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without)
    _python, packages = software()
    assert packages.status == "fault" and packages.said.startswith("pyfaidx not installed")
