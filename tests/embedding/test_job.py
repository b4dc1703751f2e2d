"""What a job holds while it runs."""

import gc

import numpy as np
import pytest
import torch

from packedesm.embedding import job, peaks
from packedesm.embedding.record import ShardRun
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedOptions, JobOptions
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items
from packedesm.paths import Paths
from packedesm.sequences.shards import write_shards
from tests.jobs import Sample
from tests.typed import policy, shard_options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sample(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{n}\n{'ACDEFGHIKL'[: 1 + n % 10]}\n" for n in range(20)))
    return Sample(tmp_path / "sample", fasta, dtype="bfloat16", token_budget=32)


def models() -> int:
    """Return how many models there are in this process."""
    gc.collect()
    return sum(type(thing) is PackedESM2 for thing in gc.get_objects())


def test_the_model_in_half_precision_is_gone_before_that_in_float32_is_loaded(sample, monkeypatch):
    """Else the two would stand on the GPU together, where the first has taken what there is."""
    forward, load, there = PackedESM2.forward_packed, job.load_model, []

    def faulty(self, input_ids, *arguments, **options):
        hidden = forward(self, input_ids, *arguments, **options)
        return hidden * torch.nan if hidden.dtype == torch.bfloat16 else hidden

    def watch(*arguments, **options):
        there.append(models())
        return load(*arguments, **options)

    monkeypatch.setattr(PackedESM2, "forward_packed", faulty)
    monkeypatch.setattr(job, "load_model", watch)
    before = models()
    run = job.embed_shard(
        sample.paths,
        0,
        sample.checkpoint,
        EmbedOptions.of(sample.config),
        JobOptions.of(sample.config),
        threads=1,
    )
    assert there == [before]
    assert run.float32_rows == tuple(range(run.records))
    assert ShardRun.read(sample.paths.shard_run(0)) == run


def test_a_small_job_measures_its_own_products(sample, monkeypatch):
    """Those of a whole budget of tokens, which no pack has, would take more time than the job."""
    measure, asked = peaks.measure_matmul_peak, []

    def watch(model, tokens, operations):
        asked.append(tokens)
        return measure(model, tokens, operations)

    monkeypatch.setattr(peaks, "measure_matmul_peak", watch)
    config = sample.config | {"token_budget": 4096}
    options = (EmbedOptions.of(config), JobOptions.of(config))
    run = job.embed_shard(sample.paths, 0, sample.checkpoint, *options, threads=1)
    assert run.packs == 1
    assert asked == [run.tokens] * 2  # before the work and after it
    told = run.seconds
    assert told.starting >= 0 and min(told.checking, told.peak) > 0
    assert told.checking + told.peak < told.setup


def test_a_record_is_called_by_its_number_in_the_input(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">empty\n>p q\nMKV\n")
    paths = Paths(tmp_path / "sample")
    write_shards([fasta], paths, shard_options(empty_sequences="skip"), shards=1, width=64)
    dataset = SequenceDataset(paths.shard_fasta(0), policy())
    assert job.item_name(paths, Items(dataset), 0) == "record 2 ('p')"


def test_what_contacts_take_on_the_disk_is_told_before_a_job():
    told = job.told_contacts(np.array([1, 2, 1022]), "float16")
    assert told.startswith("the contacts of 3 records take 1.0 MB on the disk, and as much again")
    many = np.full(20_000, 500)
    assert "the contacts of 20,000 records take 10.0 GB" in job.told_contacts(many, "float32")
