import multiprocessing
import threading
import time

import pytest

from packedesm.embedding.feed import Feed
from packedesm.options import JobOptions
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items
from packedesm.packing.packer import plan_packs
from tests.typed import options, policy


def test_a_job_starts_no_processes_unless_asked_to(shard):
    dataset = SequenceDataset(shard(*("MKV" * n for n in range(1, 30))).shard_fasta(0), policy())
    packs = plan_packs(dataset.tokens, 128)
    threads = threading.active_count()
    feed = Feed(Items(dataset), packs, options(JobOptions), check_stop=lambda: None)
    with feed.batches(range(len(packs))) as batches:
        rows = [next(batches).rows.tolist()]
        assert multiprocessing.active_children() == []
        assert threading.active_count() == threads  # one would have to be told its GPU
        rows += [batch.rows.tolist() for batch in batches]
    assert rows == [pack.tolist() for pack in packs]


def test_workers_that_are_not_needed_any_more_are_not_told_as_lost(shard):
    dataset = SequenceDataset(shard(*("MKV" * n for n in range(1, 30))).shard_fasta(0), policy())
    packs = plan_packs(dataset.tokens, 128)
    feed = Feed(Items(dataset), packs, options(JobOptions, workers=2), check_stop=lambda: None)
    with pytest.raises(MemoryError) as raised, feed.batches([0, 1]) as batches:
        next(batches)
        raise MemoryError("too large")
    time.sleep(0.3)
    assert multiprocessing.active_children() == []
    assert str(raised.value) == "too large"  # it holds the iterator until here, as a job does
