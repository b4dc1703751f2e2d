"""The command and its folder: new, unfinished, finished; never refused for ever, never lost."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from packedesm import pipeline
from packedesm.cli import main
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.files import TEMPORARY, read_json, write_record
from tests.commands import Command, bits, state_of, the_line
from tests.esm2.checkpoint_files import SMALL, write_huggingface_folder


@pytest.fixture
def command(tmp_path, eight, checkpoints):
    """Return a function that makes a command for the folder ``out``."""

    def make(source: Path = eight, **options) -> Command:
        return Command(source, tmp_path / "out", checkpoints, **options)

    return make


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory, eight, checkpoints) -> Path:
    """The folder of a command that was killed after its first commit."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    stop_after_a_commit(Command(eight, out, checkpoints))
    return out


@pytest.fixture
def stopped(command, stopped_once) -> Command:
    """A command whose folder is a copy of that."""
    run = command()
    shutil.copytree(stopped_once, run.out.root)
    return run


def test_the_same_command_again_has_nothing_to_do_and_loads_no_torch(command, quiet):
    run = command()
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    code = "import sys; from packedesm.cli import main; s = main(sys.argv[1:]);"
    code += "print('torch' in sys.modules); raise SystemExit(s)"
    done = subprocess.run(
        [sys.executable, "-c", code, *run.arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to be done" in done.stdout
    assert done.stdout.endswith("False\n")
    assert state_of(run.out.root) == before
    assert bits(run.out) == quiet
    assert not run.out.work.exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max-length": 50}, "max_length was 100, is 50"),
        ({"outputs": "mean,cls"}, "outputs was ['mean'], is ['mean', 'cls']"),
        ({"shards": 2}, "shards was 'auto', is 2"),
    ],
)
def test_another_request_is_refused_and_touches_nothing(
    command, stopped, options, words, finished, capsys
):
    if finished:
        assert main(stopped.arguments) == 0
    before = state_of(stopped.out.root)
    capsys.readouterr()
    assert main(command(**options).arguments) == 2
    assert words in the_line(capsys.readouterr().err)
    assert state_of(stopped.out.root) == before


def test_another_fasta_of_the_same_name_is_refused(command, tmp_path, eight):
    source = tmp_path / "in.fasta"
    source.write_text(eight.read_text())
    run = command(source)
    assert main(run.arguments) == 0
    text = source.read_text()
    times = source.stat()
    source.write_text(text.replace("A", "G", 1))  # of the same size, and soon of the same time
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = state_of(run.out.root)
    status, _, error = run.run()
    assert status == 2 and "the FASTA is another one" in the_line(error)
    assert state_of(run.out.root) == before
    source.write_text(text)
    assert run.run()[0] == 0


def stop_after_a_commit(run: Command, number: int = signal.SIGKILL) -> None:
    process = run.start()
    while not [*run.out.work.glob("state/*/*.commit")]:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name
)
def test_a_signal_says_what_is_kept_and_the_same_command_goes_on(command, quiet, number):
    run = command()
    process = run.start()
    while not run.out.finished_work():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "what is finished is kept" in error and "Traceback" not in error
    status, _, error = run.run()
    assert status == 0 and "kept" in error
    assert bits(run.out) == quiet


def test_a_folder_with_foreign_files_is_refused_and_untouched(command):
    run = command()
    run.out.root.mkdir()
    (run.out.root / "thesis.txt").write_text("years of work")
    for more in ([], ["--force"]):
        status, _, error = run.run(*more)
        assert status == 2 and "thesis.txt" in the_line(error)
    assert [path.name for path in run.out.root.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("kind", ["link to a folder", "file"])
def test_a_place_of_work_that_is_none_is_refused_and_not_followed(command, tmp_path, kind):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("years of work")
    run = command()
    run.out.root.mkdir()
    if kind == "file":
        run.out.work.write_text("")
    else:
        run.out.work.symlink_to(precious)
    for more in ([], ["--force"]):
        status, _, error = run.run(*more)
        assert status == 2 and "not of a run" in the_line(error)
    assert [path.name for path in precious.iterdir()] == ["data"]


def test_force_removes_links_and_not_what_they_lead_to(stopped, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("years of work")
    (stopped.out.work / "linked").symlink_to(precious)
    (stopped.out.work / "linked file").symlink_to(precious / "data")
    assert main([*stopped.arguments, "--force"]) == 0
    assert (precious / "data").read_text() == "years of work"


@pytest.mark.parametrize("good", [True, False])
def test_files_that_appear_meanwhile_stay(command, tmp_path, good):
    source = tmp_path / "bad.fasta"
    source.write_text(">a\nMK\n>b\nM1\n")
    run = command() if good else command(source)
    process = run.start()
    while not run.out.lock.exists() and process.poll() is None:
        time.sleep(0.001)
    note = run.out.root / "note.txt"
    if process.poll() is None:
        note.write_text("mine")
    process.communicate(timeout=120)
    assert process.returncode == (0 if good else 2)
    assert note.read_text() == "mine"


def test_a_bad_input_leaves_nothing(command, tmp_path):
    source = tmp_path / "bad.fasta"
    source.write_text(">a\nMK\n>b\nM1\n")
    assert command(source).run()[0] == 2
    assert not (tmp_path / "out").exists()


def test_force_says_what_it_removes_and_starts_over(command):
    assert main(command().arguments) == 0
    other = command(**{"max-length": 50})
    status, _, error = other.run("--force")
    assert status == 0
    assert "starting over, removing index.parquet, manifest.json, mean.npy" in error
    assert read_json(other.out.manifest)["config"]["max_length"] == 50


def test_a_missed_threshold_keeps_the_vectors_and_goes_on_with_the_verification(
    command, quiet, capsys
):
    run = command()
    with right_at_first_only():
        assert main(run.arguments) == 2
    assert "verification failed" in the_line(capsys.readouterr().err)
    wrong = bits(run.out)
    assert wrong != quiet
    assert not run.out.manifest.exists()
    loose = {"verify-max-relative-l2": 1, "verify-min-cosine": 0}
    status, _, error = command(**loose).run()
    assert status == 0
    assert "shard 0 is finished and kept" in error
    assert bits(run.out) == wrong


@contextmanager
def right_at_first_only():
    """Let a device compute the proteins of the first check right, and all that follows wrong."""
    forward, passes = PackedESM2.forward_packed, iter(range(10**9))

    def off(self, *arguments, **options):
        hidden = forward(self, *arguments, **options)
        return hidden * 1.01 if next(passes) else hidden

    with mock.patch.object(PackedESM2, "forward_packed", off):
        yield


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_request_is_refused_by_name(stopped, content, capsys):
    stopped.out.request.write_text(content)
    before = state_of(stopped.out.root)
    assert main(stopped.arguments) == 2
    error = capsys.readouterr().err
    assert "request.json" in the_line(error) and "--force" in error
    assert state_of(stopped.out.root) == before
    assert main([*stopped.arguments, "--force"]) == 0


def test_results_of_the_workflow_are_not_taken_for_those_of_the_command(command):
    run = command()
    assert main(run.arguments) == 0
    manifest = read_json(run.out.manifest)
    write_record(run.out.manifest, manifest | {"request": None})
    before = state_of(run.out.root)
    status, _, error = run.run()
    assert status == 2 and the_line(error)
    assert state_of(run.out.root) == before


def test_what_a_kill_left_half_written_is_cleared_and_hinders_nothing(command, quiet):
    run = command()
    stop_after_a_commit(run)
    (run.out.root / ".packedesm-abc.npy").write_bytes(b"half an array")
    status, _, error = run.run()
    assert status == 0, error
    assert bits(run.out) == quiet
    assert not list(run.out.root.glob(".packedesm-*"))


@pytest.mark.parametrize("left", [".work", ".packedesm-0123456789abcdef"])
def test_a_kill_while_clearing_away_leaves_finished_results(command, quiet, left):
    run = command()
    assert main(run.arguments) == 0
    (run.out.root / left / "embeddings" / "0").mkdir(parents=True)  # what was not removed yet
    status, out, error = run.run()
    assert status == 0 and "nothing to be done" in out, error
    assert bits(run.out) == quiet
    assert not (run.out.root / left).exists()


@pytest.mark.parametrize("mistake", ["--model=esm2_tiny_randon", "--dtype=fp16", "bad FASTA"])
def test_force_gives_nothing_up_for_a_mistake(command, tmp_path, mistake, quiet):
    run = command()
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    if mistake == "bad FASTA":
        source = tmp_path / "bad.fasta"
        source.write_text("no FASTA at all\n")
        assert command(source).run("--force")[0] == 2
    else:
        assert run.run("--force", mistake)[0] == 2
    assert state_of(run.out.root) == before


def test_another_model_of_the_same_name_size_and_time_is_another_request(command, tmp_path):
    model = tmp_path / "model.pt"
    run = command(**{"model": model})
    for seed in (1, 2):
        write_random_checkpoint(model, Geometry(layers=1, width=32, heads=2), seed=seed)
        os.utime(model, (1_600_000_000, 1_600_000_000))
        status, _, error = run.run()
        assert status == (0 if seed == 1 else 2)
    assert "the model is another one" in the_line(error)


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_that_tensors_do_not_show_is_part_of_the_model(
    command, tmp_path, capsys, finished
):
    """The number of heads changes every vector, and no tensor's shape."""
    small, model = tmp_path / "small.pt", tmp_path / "model"
    write_random_checkpoint(small, SMALL, seed=1)
    geometry, state = load_state(small)
    frequencies = [name for name in state if "rot_emb" in name]  # today's files lack these
    tensors = {name: state[name] for name in state.keys() - frequencies}
    write_huggingface_folder(model, geometry, tensors)
    run = command(model=model)
    if finished:
        assert main(run.arguments) == 0
    else:
        stop_after_a_commit(run)
    config = model / "config.json"
    config.write_text(config.read_text().replace('heads": 4', 'heads": 2'))
    capsys.readouterr()
    assert main(run.arguments) == 2
    assert "the model is another one" in the_line(capsys.readouterr().err)


def test_force_wants_an_input_that_can_be_read_twice(command, tmp_path, eight, capsys):
    run = command()
    assert main(run.arguments) == 0
    before = state_of(run.out.root)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    capsys.readouterr()
    assert main([*command(pipe).arguments, "--force"]) == 2
    assert "write it to a file first" in the_line(capsys.readouterr().err)
    assert state_of(run.out.root) == before


def test_weights_in_the_folder_of_the_results_are_refused(command, capsys):
    run = command()
    for inside in (".", ".work"):
        assert main([*run.arguments, "--checkpoints", str(run.out.root / inside)]) == 2
        assert the_line(capsys.readouterr().err)
        assert not run.out.root.exists()


@pytest.mark.parametrize("damage", ["gone", "zeros"])
@pytest.mark.parametrize("name", ["mean.npy", "index.parquet"])
def test_results_that_are_not_whole_are_not_called_done(command, name, damage):
    run = command()
    assert main(run.arguments) == 0
    path = run.out.root / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    status, _, error = run.run()
    assert status == 2 and name in the_line(error) and "missing or damaged" in error
    assert run.run("--force")[0] == 0


@pytest.mark.parametrize(
    "manifest", ['{"name": "my web app"}', '{"request": null, "sha256": {}}', "["]
)
def test_force_takes_nothing_that_is_not_of_the_command(command, manifest):
    run = command()
    run.out.root.mkdir()
    run.out.manifest.write_text(manifest)
    run.out.metrics.write_text("{}")
    for more in ([], ["--force"]):
        status, _, error = run.run(*more)
        assert status == 2 and "Traceback" not in error
    assert run.out.manifest.read_text() == manifest and run.out.metrics.exists()


def test_a_fasta_that_changes_while_it_is_read_is_noticed(command, tmp_path, eight, monkeypatch):
    source = tmp_path / "in.fasta"
    source.write_text(eight.read_text())
    real = pipeline.write_shards

    def changed(*arguments, **options):
        source.write_text(eight.read_text().replace("A", "G", 1))
        return real(*arguments, **options)

    monkeypatch.setattr(pipeline, "write_shards", changed)
    assert main(command(source).arguments) == 2


def test_an_input_in_the_folder_of_the_results_is_refused(command, tmp_path, eight):
    source = tmp_path / "out" / "report.html"
    source.parent.mkdir()
    source.write_text(eight.read_text())
    for more in ([], ["--force"]):
        assert command(source).run(*more)[0] == 2
    assert source.read_text() == eight.read_text()


@pytest.mark.parametrize(
    "content",
    ["[]", "[" * 100_000, '{"format": 1, "inputs": [{"path": ["x"]}], "options": [], "model": {}}'],
)
def test_a_forged_request_is_one_line(stopped, content, capsys):
    stopped.out.request.write_text(content)
    assert main(stopped.arguments) == 2
    assert "request.json" in the_line(capsys.readouterr().err)


def test_a_kill_while_the_request_is_written_hinders_nothing(command, quiet):
    run = command()
    run.out.work.mkdir(parents=True)
    run.out.lock.touch()
    (run.out.work / f"{TEMPORARY}x.json").write_text("{")
    assert main(run.arguments) == 0
    assert bits(run.out) == quiet
    assert {path.name for path in run.out.root.iterdir()} <= {p.name for p in run.out.results()}


@pytest.mark.parametrize("name", ["thesis.txt", ".work/state", "mean.npy"])
def test_what_is_odd_while_another_process_works_there_is_said_to_be_that(command, name, capsys):
    """What it has just made or begun to clear away may look like anything."""
    run = command()
    run.out.work.mkdir(parents=True)
    (run.out.root / name).touch()
    with run.out.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(run.arguments) == 1
        assert "another packedesm works in this folder" in the_line(capsys.readouterr().err)
    assert main(run.arguments) == 2
