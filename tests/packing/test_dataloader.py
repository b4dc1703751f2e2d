import os
import signal
import sys
import threading

import pytest
import torch

from packedesm.packing.dataloader import create_async_dataloader, worker_lost
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.packer import plan_packs
from tests.typed import policy

POLICY = policy()


SEQUENCES = ["MKV" * n for n in range(1, 30)]


class SpyingDataset(SequenceDataset):
    """Tells from inside the worker what that process can see, through the rows it returns."""

    def __getitems__(self, items):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert not torch.cuda.is_initialized()
        assert torch.cuda.device_count() == 0
        # A forked child would share the parent's memory image and find this attribute.
        assert not hasattr(sys, "set_in_the_parent_only")
        assert torch.utils.data.get_worker_info() is not None
        return super().__getitems__(items)


def _load(dataset, workers):
    packs = plan_packs(dataset.tokens, 128)
    return packs, create_async_dataloader(dataset, packs, workers=workers, pin_memory=False, seed=1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_packs_come_in_the_order_of_the_plan(shard, workers):
    dataset = SequenceDataset(shard(*SEQUENCES).shard_fasta(0), POLICY)
    packs, loader = _load(dataset, workers)
    rows = [batch.rows.tolist() for batch in loader]
    assert rows == [packs[p].tolist() for p in range(len(packs))]
    assert sorted(row for pack in rows for row in pack) == list(range(len(SEQUENCES)))


def test_workers_are_spawned_and_cannot_see_a_gpu(shard, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(sys, "set_in_the_parent_only", True, raising=False)
    dataset = SpyingDataset(shard(*SEQUENCES).shard_fasta(0), POLICY)
    _, loader = _load(dataset, 1)
    assert sum(len(batch.rows) for batch in loader) == len(SEQUENCES)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_an_unset_variable_is_unset_again(shard, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _, loader = _load(SpyingDataset(shard(*SEQUENCES).shard_fasta(0), POLICY), 1)
    for _ in loader:
        pass
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_workers_end_when_the_loop_is_left_early(shard):
    dataset = SequenceDataset(shard(*SEQUENCES).shard_fasta(0), POLICY)
    _, loader = _load(dataset, 2)
    iterator = iter(loader)
    next(iterator)
    workers = list(loader._workers)
    assert len(workers) == 2
    del iterator
    assert [worker.is_alive() for worker in workers] == [False, False]


class FailingDataset(SequenceDataset):
    """Sends its worker process a signal when the pack of the longest record is asked for."""

    number = signal.SIGKILL

    def __getitems__(self, items):
        if 0 in items and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), self.number)
        return super().__getitems__(items)


class StoppingDataset(FailingDataset):
    number = signal.SIGSTOP


# A worker needs some seconds until it has imported torch: less patience would not see it hang.
@pytest.mark.parametrize(("kind", "patience"), [(FailingDataset, 300), (StoppingDataset, 15)])
def test_a_worker_that_dies_or_hangs_is_an_error_that_is_told_from_others(shard, kind, patience):
    dataset = kind(shard(*SEQUENCES).shard_fasta(0), POLICY)
    loader = create_async_dataloader(
        dataset, [[5], [0], [6]], workers=1, pin_memory=False, seed=1, patience=patience
    )
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert worker_lost(caught.value)
    assert not worker_lost(RuntimeError("something else"))
    loader.kill()
    assert not loader._workers[0].is_alive()


def test_a_lost_worker_is_seen_behind_the_error_of_what_it_interrupted():
    said = "DataLoader worker (pid 1) is killed by signal: Killed."
    with pytest.raises(KeyError) as caught:
        try:
            raise RuntimeError(said + "\nmore")
        finally:
            {}["thread"]
    assert worker_lost(caught.value) == said


def test_an_error_while_the_timer_is_cancelled_does_not_hold_up_the_end(shard, monkeypatch):
    def cancel(_timer):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(threading.Timer, "cancel", cancel)
    dataset = SequenceDataset(shard(*SEQUENCES).shard_fasta(0), POLICY)
    loader = create_async_dataloader(
        dataset, [[5]], workers=1, pin_memory=False, seed=1, patience=120
    )
    with pytest.raises(RuntimeError, match="is killed"):
        next(iter(loader))
    loader.kill()
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert timers
    assert all(timer.daemon for timer in timers)  # Python ends without waiting for them
