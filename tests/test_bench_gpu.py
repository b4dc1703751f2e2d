"""`make bench-gpu`: parts that are finished are kept, whatever ends the others is told."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_parts import kernels, table
from benchmarks.gpu_parts import run as bench_run
from benchmarks.gpu_parts.gpu_tests import files, summary
from benchmarks.gpu_parts.kernels import KERNELS, Pair
from benchmarks.gpu_parts.layers import by_step, pack
from benchmarks.gpu_parts.part import Task
from benchmarks.gpu_parts.run import Bench, Part, plan
from benchmarks.gpu_parts.table import as_markdown, of_tests
from packedesm.esm2.attention import Selection
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.kernel_trials import TRIALS
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json
from tests.fake_cuda.kernels import kernels_stood_in
from tests.workflow import ROOT

CONDITIONS = {
    "chip": "NVIDIA X1",
    "key": "0123456789",
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "a CPU",
    "cores": 1,
    "python": "3.11",
    "versions": {"torch": "2", "triton": None},
    "cuda": None,
    "gpu": None,
    "commit": "abc",
    "changed_since": False,
}
MODULE = "tests.bench_parts"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a function that runs made-up parts of one module by the names of their models."""
    monkeypatch.setattr(bench_run, "GRACE", 1.0)
    monkeypatch.setattr(bench_run, "LEAST", 2.0)
    monkeypatch.setitem(table.TABLES, "bench_parts", lambda result: str(result["rows"]))
    options = argparse.Namespace(device="cpu", results=tmp_path / "results", scratch=tmp_path)

    def run(*models: str, seconds: float = 60, part_seconds: float = 20) -> dict:
        found = Bench(options, CONDITIONS, time.monotonic() + seconds)
        parts = [Part(MODULE, part_seconds, model) for model in models]
        found.run(found.unfinished(parts), lambda _model, _end: None)
        assert read_json(found.path) == found.state
        assert found.path.with_suffix(".md").read_text() == as_markdown(found.state)
        return {name.partition(" ")[2]: entry for name, entry in found.state["parts"].items()}

    return run


def test_a_finished_part_is_not_run_again_and_the_others_are(bench, tmp_path):
    first = bench("good", "killed", "faulty")
    assert first["good"]["finished"] and first["good"]["result"] == {"rows": [1]}
    assert first["killed"]["reason"] == "failed: its process ended with status -9"
    assert first["killed"]["result"] == {"rows": [1]}, "what it had found is kept"
    assert first["faulty"]["reason"] == "failed: RuntimeError: a kernel is wrong"
    second = bench("good", "killed", "faulty")
    assert second["good"] == first["good"]
    assert second["killed"]["finished"] and second["killed"]["result"] == {"rows": [2]}
    assert not second["faulty"]["finished"]
    assert not [*tmp_path.glob("part-*")], "temporary folders are left"


def test_what_the_time_does_not_suffice_for_is_said_to_be_not_run(bench):
    found = bench("slow", "cut", "good", seconds=8, part_seconds=6)
    assert found["slow"]["reason"] == "not run to its end: the time was up"
    assert found["slow"]["seconds"] == pytest.approx(6, abs=2)
    assert not found["good"]["finished"]
    assert found["good"]["reason"] == "not run: the time was up"
    assert "result" not in found["good"]


def test_a_part_says_itself_that_it_was_cut_or_cannot_run(bench):
    found = bench("cut", "refused")
    assert found["cut"]["reason"] == "not run to its end: the time was up"
    assert found["refused"]["reason"] == "not run: there is no such device"
    assert bench("cut", seconds=1)["cut"] == found["cut"], "what it had found is kept"


def test_later_parts_get_what_earlier_ones_leave(bench, monkeypatch):
    """And earlier ones get their budget, however many come after them."""
    given = []
    monkeypatch.setattr(
        bench_run,
        "measure",
        lambda part, _options, seconds: given.append(seconds) or {"finished": True, "reason": None},
    )
    bench("a", "b", "c", seconds=100, part_seconds=20)
    assert given == pytest.approx([100 / 3, 50, 100], abs=2)
    given.clear()
    bench("d", "e", "f", seconds=30, part_seconds=20)
    assert given == pytest.approx([20, 20, 30], abs=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_takes_its_part_with_it(tmp_path, number):
    code = f"""if True:
    import argparse, pathlib, signal, sys
    from benchmarks.gpu_parts.run import Part, measure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scratch = pathlib.Path({str(tmp_path)!r})
    measure(Part({MODULE!r}, 60, "slow"), argparse.Namespace(device="cpu", scratch=scratch), 60)
    """
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    count = tmp_path / "slow.count"
    deadline = time.monotonic() + 60
    while not count.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (part,) = children(process.pid)
    process.send_signal(number)
    process.wait()
    while running(part):
        assert time.monotonic() < deadline, "the part goes on without its command"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_tests_come_first_and_the_budgets_fit_into_nine_minutes():
    options = bench_run.parser().parse_args([])
    parts = plan(options.models)
    assert [part.name for part in parts[:2]] == ["gpu_tests", "kernels"]
    assert {part.model for part in parts[2:]} == {
        "esm2_t33_650M_UR50D",
        "esm2_t6_8M_UR50D",
        "esm2_t36_3B_UR50D",
    }
    assert sum(part.seconds for part in parts) <= 60 * options.minutes
    assert 60 * options.minutes + bench_run.CONDITIONS.seconds / 4 <= 9 * 60


def test_every_fused_kernel_is_timed():
    assert set(KERNELS) == set(TRIALS)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_and_twin_take_the_same_on_the_gpu_and_stay_there(name, fake_cuda):
    batch = pack(1024)
    with FakeTensorMode(allow_non_fake_inputs=True), kernels_stood_in():
        batch = batch.to(fake_cuda)
        pair = KERNELS[name](MODELS["esm2_t6_8M_UR50D"], batch, torch.float16)
        pair.kernel()
        assert pair.twin().device == fake_cuda


@pytest.mark.parametrize("name", KERNELS)
def test_the_twin_of_every_kernel_computes_and_bytes_are_counted(name):
    geometry, batch = Geometry(layers=1, width=32, heads=2), pack(1024)
    pair = KERNELS[name](geometry, batch, torch.bfloat16)
    assert torch.isfinite(pair.twin()).all()
    of_a_vector = pair.moved / sum(batch.lengths) / (2 * geometry.width)
    assert of_a_vector == pytest.approx(VECTORS[name], rel=0.15)


# What each token reads and writes: q and k, or x and its change, and both again, and so on.
VECTORS = {"rotate_": 4, "add_norm": 4, "linear_gelu": 5, "embed": 1, "pool": 1}


def test_a_kernel_that_fails_is_a_row_with_its_reason_and_costs_no_other(tmp_path, monkeypatch):
    def wrong():
        raise RuntimeError("PassManager::run failed\nand more")

    twin = partial(torch.zeros, 1)
    made = {"wrong": Pair(wrong, twin, 1), "right": Pair(twin, twin, 8)}
    makers = {name: lambda *_, pair=pair: pair for name, pair in made.items()}
    monkeypatch.setattr(kernels, "KERNELS", makers)
    monkeypatch.setattr(kernels, "select_kernels", lambda *_: Selection("triton", ""))
    task = Task("cpu", None, tmp_path, time.monotonic() + 60, tmp_path / "found.json")
    kernels.measure(task)
    rows = read_json(task.found)["result"]["rows"]
    assert [row["kernel"] for row in rows] == 3 * [
        "wrong",
        "right",
    ]  # at the widths of three models
    assert {row["reason"] for row in rows[::2]} == {"PassManager::run failed"}
    assert all(row["seconds"] > 0 and row["bytes_per_second"] > 0 for row in rows[1::2])
    text = table.of_kernels(task.result)
    assert "| wrong | esm2_t33_650M_UR50D | float32 | PassManager::run failed |  |  |" in text


def test_steps_of_a_layer_are_told_apart_by_the_names_of_kernels():
    names = {
        "attention": ["void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90", 3],
        "rotary embedding": ["_rotate", 1],
        "residual sums and LayerNorm": ["_add_norm", 2],
        "GELU": ["void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernel", 1],
        "product with GELU": ["_linear_gelu", 1],
        "products": ["nvjet_tst_192x192_64x4_2x1_v_bz_bias_TNT", 4],
        "other": ["Memcpy HtoD (Pinned -> Device)", 1],
    }
    found = by_step([(name, 0.5, calls) for name, calls in names.values()])
    assert found["steps"] == {
        step: {"seconds": 0.5, "launches": calls} for step, (_, calls) in names.items()
    }
    assert len(found["longest"]) == len(names)


def test_files_of_gpu_tests_are_found_and_what_became_of_each_is_told():
    assert "test_gpu_pressure.py" in {path.name for path in files()}
    lines = [{"test": name} for name in ("a", "b", "c", "d")]
    lines += [
        {"test": "a", "outcome": "passed", "reason": "", "seconds": 1.5},
        {"test": "b", "outcome": "failed", "reason": "wrong", "seconds": 0.1},
        {"test": "c", "outcome": "skipped", "reason": "no FA3", "seconds": 0.0},
    ]
    found = summary(lines)
    assert found == {
        "passed": {"a": 1.5},
        "failed": {"b": "wrong"},
        "skipped": {"c": "no FA3"},
        "not_run": ["d"],
    }
    text = of_tests(found)
    assert text.startswith("1 passed, 1 failed, 1 skipped, 1 not run.")
    assert "| failed | b | wrong |" in text and "| not run | d |" in text


def test_pytest_tells_the_part_of_every_test_also_if_it_is_stopped(tmp_path):
    written = tmp_path / "test_written.py"
    written.write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no GPU')\n"
        "def test_skipped(): pass\n"
        "def test_killed(): os.kill(os.getpid(), 9)\n"
        "def test_last(): pass\n"
    )
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_parts.gpu_tests", written]
    environment = os.environ | {"PACKEDESM_GPU_TESTS": str(lines)}
    subprocess.run([*command, "-c", os.devnull], cwd=ROOT, env=environment, capture_output=True)
    found = summary([json.loads(line) for line in lines.read_text().splitlines()])
    names = {kind: [test.rpartition("::")[2] for test in tests] for kind, tests in found.items()}
    assert names == {
        "passed": ["test_good"],
        "failed": ["test_bad"],
        "skipped": ["test_skipped"],
        "not_run": ["test_killed", "test_last"],
    }
    assert "assert 1 == 2" in next(iter(found["failed"].values()))
    assert list(found["skipped"].values()) == ["no GPU"]


@pytest.fixture(scope="module")  # half a minute
def rehearsal(tmp_path_factory):
    """What the whole command writes on a CPU, and how often each part ran."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "scratch" / "part-killed").mkdir(parents=True)
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu"]
    command += ["--models", "esm2_tiny_random"]
    command += ["--results", str(folder / "results"), "--scratch", str(folder / "scratch")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not [*(folder / "scratch").glob("part-*")], "parts of this or a killed run are left"
    (path,) = (folder / "results").glob("*.json")
    return done.stdout, read_json(path), path.with_suffix(".md").read_text()


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_whole_command_is_rehearsed_on_a_cpu(rehearsal):
    printed, state, markdown = rehearsal
    parts = state["parts"]
    measured = [f"{name} esm2_tiny_random" for name in ("layers", "comparison", "job")]
    assert [*parts] == ["gpu_tests", "kernels", *measured]
    assert markdown in printed and markdown == as_markdown(state)
    assert parts["kernels"]["reason"] == "not run: Triton's kernels are for a GPU"
    if not torch.cuda.is_available():
        assert "torch sees no NVIDIA GPU" in parts["gpu_tests"]["reason"]
        assert not parts["gpu_tests"]["result"]["failed"]
    for name in measured:
        assert parts[name]["finished"], parts[name]
    layers, comparison, job = (parts[name]["result"]["rows"] for name in measured)
    assert {row["attention"] for row in layers} >= {"sdpa"}
    for row in layers:
        assert row["seconds"][0] > 0 and row["steps"]["products"]["seconds"] > 0
        assert row["product_ceiling_seconds"] > 0
    assert all(row["reason"] is None and row["seconds"] for row in comparison)
    assert [row["records"] for row in job] == [8, 16]
    assert all(row["relative_l2"] < 1e-5 for row in job)
    assert job[-1]["mfu"] is None or 0 < job[-1]["mfu"] <= 1  # too short, or the machine is busy
    conditions = state["conditions"]
    assert conditions["versions"]["torch"] == torch.__version__
    assert conditions["date"] and conditions["chip"] and conditions["key"]


@pytest.mark.benchmarks
def test_wheels_are_collected_for_all_that_the_tests_and_parts_import():
    """For a machine that has what the first lines of the file name, with all that it needs."""
    text = (ROOT / "benchmarks" / "requirements-gpu.txt").read_text("utf-8")
    lines = text.splitlines()
    pinned = dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)
    there = closure(set(re.search(r"^# (torch .*)", text, re.MULTILINE)[1].split()))
    imported = imports_of(["-p", "pytest_timeout", *map(str, files())])
    known = {canonical(name) for name in [*pinned, "packedesm"]} | there
    assert {"pytest", "numpy", "jinja2"} <= imported
    assert sorted(imported - known) == [], "neither in requirements-gpu.txt nor said to be there"
    locked = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    versions = dict(line.split("==") for line in locked if "==" in line)
    assert {n: v for n, v in pinned.items() if versions.get(n, v) != v} == {}


def imports_of(arguments: list[str]) -> set[str]:
    """Return the distributions that parts import, and pytest while it collects the tests."""
    code = f"""if True:
    import contextlib, importlib, io, pkgutil, sys
    from importlib import metadata
    import pytest
    import benchmarks.gpu_parts, packedesm.cli, packedesm.pipeline, packedesm.report.page
    for module in pkgutil.iter_modules(benchmarks.gpu_parts.__path__):
        importlib.import_module(f"benchmarks.gpu_parts.{{module.name}}")
    arguments = ["--collect-only", "-m", "gpu", "-o", "addopts=", *{arguments!r}]
    with contextlib.redirect_stdout(io.StringIO()):
        assert pytest.main(arguments) == 0
    known = metadata.packages_distributions()
    loaded = {{name.partition(".")[0] for name in sys.modules}}
    print(*{{distribution for name in loaded for distribution in known.get(name, [])}})
    """
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {canonical(name) for name in done.stdout.split()}


def closure(names: set[str]) -> set[str]:
    """Return distributions with all that they need, as far as they are installed here."""
    found: set[str] = set()
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        with suppress(metadata.PackageNotFoundError):
            needed = [text for text in metadata.requires(name) or [] if "extra ==" not in text]
            waiting += [canonical(re.match(r"[\w.-]+", text)[0]) for text in needed]
    return found


def canonical(name: str) -> str:
    """Return a name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
