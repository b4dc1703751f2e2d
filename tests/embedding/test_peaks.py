"""What a job says that its device could compute: before and after, over all attempts."""

import pytest

from packedesm.device.ceiling import Peak
from packedesm.embedding import job
from packedesm.embedding import peaks as module
from packedesm.embedding.peaks import peaks
from packedesm.embedding.record import ShardRun
from packedesm.embedding.resume import Attempt
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedOptions, JobOptions
from tests.jobs import Sample

UNKNOWN = Peak(None, "too short")


def test_of_one_attempt_the_faster_measurement_counts():
    for before, after in ((1e9, 2e9), (2e9, 1e9)):
        found = peaks([Attempt(3.0, before)], Peak(after))
        assert found == (2e9, (1e9, 2e9), None)
    assert peaks([Attempt(3.0, None)], Peak(1e9)) == (1e9, (1e9, 1e9), None)
    assert peaks([Attempt(3.0, 1e9)], UNKNOWN) == (1e9, (1e9, 1e9), None)


def test_attempts_on_machines_that_differ_count_by_their_time():
    found = peaks([Attempt(30.0, 1e9), Attempt(10.0, 4e9)], Peak(5e9))
    assert found == ((30 * 1e9 + 10 * 5e9) / 40, (1e9, 5e9), None)
    found = peaks([Attempt(30.0, 1e9), Attempt(1.0, None)], UNKNOWN)  # too little was left
    assert found == (1e9, (1e9, 1e9), None)
    found = peaks([Attempt(0.0, 1e9), Attempt(0.0, 3e9)], UNKNOWN)
    assert found.flops == pytest.approx(2e9)


def test_without_any_measurement_the_reason_is_kept():
    assert peaks([], UNKNOWN) == peaks([Attempt(1.0, None)], UNKNOWN) == (None, None, "too short")


@pytest.fixture
def sample(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{n}\n{'ACDEFGHIKL'[: 1 + n % 10]}\n" for n in range(20)))
    return Sample(tmp_path / "sample", fasta, dtype="float32", token_budget=32, commit_packs=1)


def embedded(sample, monkeypatch, *, stop_at=None) -> tuple[ShardRun | None, list]:
    """Run a job, or an attempt that is stopped at a pass; return what it recorded and what it did.

    That is passes, and measurements with the operations that they may take. The peak is the number
    of what was done so far.
    """
    events = []
    forward = PackedESM2.forward_packed

    def measure(_model, tokens, operations):
        assert tokens == 32
        events.append(operations)
        return Peak(float(len(events))) if operations > 0 else UNKNOWN

    def passed(self, input_ids, *arguments, **options):
        events.append("pass")
        if events.count("pass") == stop_at:
            raise KeyboardInterrupt
        return forward(self, input_ids, *arguments, **options)

    options, asked = EmbedOptions.of(sample.config), JobOptions.of(sample.config)
    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_matmul_peak", measure)
        patch.setattr(PackedESM2, "forward_packed", passed)
        try:
            run = job.embed_shard(sample.paths, 0, sample.checkpoint, options, asked, threads=1)
        except KeyboardInterrupt:
            run = None
    return run, events


def test_it_is_measured_before_the_first_pack_and_after_the_last_with_a_share_of_the_work(
    sample, monkeypatch
):
    run, events = embedded(sample, monkeypatch)
    first = events.index(pytest.approx(0.015 * run.flops))  # after the first check
    assert events[first + 1 :] == ["pass"] * run.packs + [events[first]]
    last = float(len(events))
    assert (run.matmul_peak_flops, run.matmul_peak_range) == (last, (first + 1.0, last))
    assert ShardRun.read(sample.paths.shard_run(0)) == run


def test_what_a_stopped_attempt_has_measured_is_kept(sample, monkeypatch):
    _, stopped = embedded(sample, monkeypatch, stop_at=4)
    begun = next(place for place, event in enumerate(stopped) if event != "pass") + 1.0
    run, events = embedded(sample, monkeypatch)
    left = [event for event in events if event != "pass"]
    assert left[0] == left[1] < max(event for event in stopped if event != "pass")
    assert run.matmul_peak_range == (begun, float(len(events)))
    assert begun < run.matmul_peak_flops < len(events)  # by their times
