import pickle

import numpy as np
import pytest
from pyfaidx import Fasta

from packedesm.options import LengthPolicy
from packedesm.packing.dataset import MemoryDataset, SequenceDataset
from packedesm.paths import Paths
from packedesm.sequences.shards import write_shards
from tests.typed import policy, shard_options

POLICY = policy()


@pytest.fixture(scope="module")
def example(uniprot_500, tmp_path_factory):
    paths = Paths(tmp_path_factory.mktemp("example"))
    write_shards([uniprot_500], paths, shard_options(), shards=2, width=64)
    return paths


def test_records_are_what_an_independent_reader_finds(example):
    dataset = SequenceDataset(example.shard_fasta(1), POLICY)
    with Fasta(str(example.shard_fasta(1)), build_index=False) as fasta:
        assert [int(name) for name in fasta.records] == dataset.rows.tolist()
        for item, row in enumerate(dataset.rows):
            assert dataset[item].sequence.decode() == str(fasta[str(row)])[:1022]
            assert dataset[item].row == item


def test_lengths_tokens_and_shortened_follow_the_policy(shard):
    paths = shard("M" * 10, "A" * 30, "C" * 4)
    dataset = SequenceDataset(paths.shard_fasta(0), LengthPolicy(10, "truncate", 2))
    assert dataset.embedded_lengths.tolist() == [10, 10, 4]
    assert dataset.tokens.tolist() == [12, 12, 6]
    assert dataset.shortened == 1
    assert dataset[1].sequence == b"A" * 10
    assert dataset[1].windows == [(0, 10)]


def test_windows_keep_the_whole_sequence(shard):
    paths = shard("M" * 10, "ACDEFGHIKLMN")
    dataset = SequenceDataset(paths.shard_fasta(0), LengthPolicy(10, "window", 2))
    assert dataset[1].sequence == b"ACDEFGHIKLMN"
    assert dataset[1].windows == [(0, 10), (2, 12)]
    assert dataset.shortened == 0


def test_a_pickled_dataset_reads_the_same_records(example):
    dataset = SequenceDataset(example.shard_fasta(0), POLICY)
    before = dataset[3]  # opens the mapping, which must not be sent along
    assert pickle.loads(pickle.dumps(dataset))[3] == before


def test_an_empty_shard_has_no_records(tmp_path, shard):
    paths = shard("MKV")
    paths.shard_fasta(0).write_bytes(b"")
    paths.shard_fai(0).write_bytes(b"")
    dataset = SequenceDataset(paths.shard_fasta(0), POLICY)
    assert len(dataset) == 0
    assert dataset.tokens.dtype == np.int64


@pytest.mark.parametrize("kind", ["truncate", "window", "full"])
def test_records_in_memory_are_those_of_a_shard(shard, kind):
    texts = ("M" * 10, "ACDEFGHIKLMN", "C" * 4)
    of_shard = SequenceDataset(shard(*texts).shard_fasta(0), policy := LengthPolicy(10, kind, 2))
    dataset = MemoryDataset(of_shard.rows, [text.encode() for text in texts], policy)
    assert len(dataset) == 3
    for name in ("rows", "lengths", "embedded_lengths", "tokens"):
        assert getattr(dataset, name).tolist() == getattr(of_shard, name).tolist()
    assert dataset.__getitems__([2, 0, 1]) == of_shard.__getitems__([2, 0, 1])
    assert pickle.loads(pickle.dumps(dataset))[1] == of_shard[1]
    assert dataset.shortened == of_shard.shortened
