import pickle

import numpy as np
import pytest
from pyfaidx import Fasta

from packedesm.packing.dataset import SequenceDataset
from packedesm.paths import Layout
from packedesm.sequences.shards import write_shards
from tests.unit.conftest import POLICY


@pytest.fixture(scope="module")
def example(uniprot_500, tmp_path_factory):
    layout = Layout(tmp_path_factory.mktemp("example"))
    options = {**POLICY, "empty_sequences": "error", "deduplicate": True}
    write_shards([uniprot_500], layout, 2, width=64, **options)
    return layout


def test_records_are_what_an_independent_reader_finds(example):
    dataset = SequenceDataset(example.shard_fasta(1), **POLICY)
    with Fasta(str(example.shard_fasta(1)), build_index=False) as fasta:
        assert [int(name) for name in fasta.records] == dataset.rows.tolist()
        for item, row in enumerate(dataset.rows):
            assert dataset[item].sequence.decode() == str(fasta[str(row)])[:1022]
            assert dataset[item].row == item


def test_lengths_tokens_and_shortened_follow_the_policy(shard):
    layout = shard("M" * 10, "A" * 30, "C" * 4)
    dataset = SequenceDataset(
        layout.shard_fasta(0), max_length=10, long_sequences="truncate", window_overlap=2
    )
    assert dataset.embedded_lengths.tolist() == [10, 10, 4]
    assert dataset.tokens.tolist() == [12, 12, 6]
    assert dataset.shortened == 1
    assert dataset[1].sequence == b"A" * 10
    assert dataset[1].segments == [(0, 10)]


def test_windows_keep_the_whole_sequence(shard):
    layout = shard("M" * 10, "ACDEFGHIKLMN")
    dataset = SequenceDataset(
        layout.shard_fasta(0), max_length=10, long_sequences="window", window_overlap=2
    )
    assert dataset[1].sequence == b"ACDEFGHIKLMN"
    assert dataset[1].segments == [(0, 10), (2, 12)]
    assert dataset.shortened == 0


def test_a_pickled_dataset_reads_the_same_records(example):
    dataset = SequenceDataset(example.shard_fasta(0), **POLICY)
    before = dataset[3]  # opens the mapping, which must not be sent along
    assert pickle.loads(pickle.dumps(dataset))[3] == before


def test_an_empty_shard_has_no_records(tmp_path, shard):
    layout = shard("MKV")
    layout.shard_fasta(0).write_bytes(b"")
    layout.shard_fai(0).write_bytes(b"")
    dataset = SequenceDataset(layout.shard_fasta(0), **POLICY)
    assert len(dataset) == 0
    assert dataset.tokens.dtype == np.int64
