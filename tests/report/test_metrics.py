import csv
from dataclasses import asdict, replace
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packedesm.embedding.record import ShardRun
from packedesm.errors import Damaged
from packedesm.files import RECORD_DIGEST, file_digest, read_json, read_record, write_record
from packedesm.paths import Paths
from packedesm.report.metrics import write_metrics
from packedesm.sequences.index import length_counts
from tests.report.finished_run import DRAWN, write_run

# Residues 40, 50, 8, 28 and a repeat of the third: 42, 52, 10 and 30 tokens in four unique records.
FASTA = (
    f">a one\n{'M' + 'A' * 39}\n>b\n{'M' + 'C' * 49}\n>c\n{'M' * 8}\n"
    f">d\n{'M' + 'D' * 27}\n>e\n{'m' * 8}\n"
)


def table(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


@pytest.fixture
def paths(tmp_path) -> Paths:
    return write_run(tmp_path / "sample", FASTA, 1)


def test_packing_states_fill_and_what_padding_would_compute(paths):
    write_metrics(paths, 1)
    shard, total = table(paths.packing)
    assert (shard["shard"], total["shard"]) == ("0", "all")
    # First-fit decreasing at 100 tokens: 52 + 42 and 30 + 10.
    assert (total["records"], total["packs"], total["tokens"]) == ("4", "2", "134")
    assert float(total["fill"]) == pytest.approx(134 / 200)
    # In file order {42}, {52}, {10, 30}: 42 + 52 + 2 x 30. Sorted {52}, {42, 30}, {10}.
    assert int(total["padded_tokens_arrival"]) == 42 + 52 + 60
    assert int(total["padded_tokens_sorted"]) == 52 + 84 + 10
    assert float(total["padding_avoided_arrival"]) == pytest.approx(1 - 134 / 154, abs=1e-5)
    assert float(shard["padding_avoided_sorted"]) == pytest.approx(1 - 134 / 146, abs=1e-5)


def test_padding_is_compared_on_the_windows_that_are_embedded(tmp_path):
    # 100 residues in windows of 60 that share 20: two sequences of 62 tokens.
    fasta = f">a\n{'M' * 100}\n>b\n{'C' * 8}\n"
    paths = write_run(tmp_path / "window", fasta, 1, long_sequences="window")
    packing = write_metrics(paths, 1)["packing"]["all"]
    assert packing["tokens"] == 2 * 62 + 10
    assert packing["padded_tokens_arrival"] == 62 + 62 + 10
    paths = write_run(tmp_path / "truncate", fasta, 1, long_sequences="truncate")
    packing = write_metrics(paths, 1)["packing"]["all"]
    assert (packing["tokens"], packing["padded_tokens_sorted"]) == (62 + 10, 62 + 10)


def test_a_record_above_the_budget_fills_its_pack_exactly(tmp_path):
    paths = write_run(tmp_path, f">a\n{'M' * 300}\n", 1, long_sequences="full")
    assert write_metrics(paths, 1)["packing"]["all"]["fill"] == 1


def test_throughput_states_rates_flops_and_waiting(paths):
    write_metrics(paths, 1)
    row = table(paths.throughput)[0]
    # Two packs of half a second each; 10^9 FLOP each, at a peak of 10^10 FLOP/s.
    assert row["device"] == "a processor"
    assert float(row["seconds"]) == 1
    assert float(row["sequences_per_second"]) == 4
    assert float(row["residues_per_second"]) == 40 + 50 + 8 + 28
    assert float(row["tokens_per_second"]) == 134
    assert float(row["tflops"]) == pytest.approx(0.002)
    assert float(row["matmul_peak_tflops"]) == pytest.approx(0.01)
    assert float(row["mfu"]) == pytest.approx(0.2)
    assert float(row["wait_share"]) == pytest.approx(0.2)
    assert float(row["forward_share"]) == pytest.approx(0.8)
    assert row["energy_j"] == row["gpu_utilisation_percent"] == ""


def test_shards_add_up_and_their_spread_is_stated(tmp_path):
    paths = write_run(tmp_path, FASTA, 2)
    run = read_json(paths.shard_run(1))
    run["seconds"]["embedding"] *= 3
    write_record(paths.shard_run(1), run)
    throughput = write_metrics(paths, 2)["throughput"]
    first, second = throughput["shards"]
    total, spread = throughput["all"], throughput["spread"]
    assert total["tokens"] == first["tokens"] + second["tokens"] == 134
    assert total["tokens_per_second"] == pytest.approx(134 / (first["seconds"] + second["seconds"]))
    slowest = max(first["seconds"], second["seconds"])
    mean = (first["seconds"] + second["seconds"]) / 2
    assert spread["seconds_max_over_mean"] == pytest.approx(slowest / mean)
    rates = sorted((first["tokens_per_second"], second["tokens_per_second"]))
    assert spread["tokens_per_second_min_over_max"] == pytest.approx(rates[0] / rates[1])
    # The second job began ten seconds after the first, and its record still says how long it took.
    assert throughput["elapsed"]["seconds"] == pytest.approx(10 + run["seconds"]["total"])


def test_of_a_job_that_was_faster_than_its_peak_no_share_is_given(tmp_path):
    paths = write_run(tmp_path, FASTA, 2)
    run = read_json(paths.shard_run(1))  # 10^9 FLOP a pack, half a second each
    run |= {"matmul_peak_flops": 1e9, "matmul_peak_range": [1e9, 1e9]}
    write_record(paths.shard_run(1), run)
    throughput = write_metrics(paths, 2)["throughput"]
    quiet, busy = throughput["shards"]
    assert (quiet["busy"], busy["busy"], throughput["all"]["busy"]) == (False, True, True)
    assert quiet["mfu"] == pytest.approx(0.2)
    assert busy["mfu"] is throughput["all"]["mfu"] is None
    assert (busy["tflops"], busy["matmul_peak_tflops"]) == pytest.approx((0.002, 0.001))
    assert [row["mfu"] for row in table(paths.throughput)][1:] == ["", ""]


def test_an_empty_shard_has_no_rates_and_does_not_widen_the_spread(tmp_path):
    paths = write_run(tmp_path, f">a\n{'M' * 30}\n", 3)
    metrics = write_metrics(paths, 3)
    empty = [row for row in metrics["throughput"]["shards"] if not row["records"]]
    assert len(empty) == 2
    assert all(row["tokens_per_second"] is None for row in empty)
    assert metrics["throughput"]["spread"]["seconds_max_over_mean"] == 1
    assert metrics["packing"]["all"]["records"] == 1


def test_gpu_samples_become_means_peak_and_energy(tmp_path):
    samples = [
        {
            "seconds": 0,
            "utilisation_percent": 90,
            "memory_bytes": 5,
            "power_w": 400.0,
            "sm_clock_mhz": 1700,
        },
        {
            "seconds": 1,
            "utilisation_percent": 100,
            "memory_bytes": 7,
            "power_w": 500.0,
            "sm_clock_mhz": 1800,
        },
    ]
    gpu = {"available": True, "reason": None, "samples": samples, "energy_j": 450.0}
    metrics = write_metrics(write_run(tmp_path, FASTA, 1, run={"gpu": gpu}), 1)
    seen = metrics["runs"][0]["gpu"]
    assert (seen["utilisation_percent"], seen["power_w"], seen["peak_memory_bytes"]) == (95, 450, 7)
    assert metrics["throughput"]["all"]["gpu_utilisation_percent"] == 95
    assert metrics["throughput"]["all"]["energy_j"] == 450


def test_readings_that_were_refused_are_left_out_of_means_and_peaks(tmp_path):
    samples = [
        {
            "seconds": second,
            "utilisation_percent": utilisation,
            "memory_bytes": memory,
            "power_w": None,
            "sm_clock_mhz": 1700,
        }
        for second, (utilisation, memory) in enumerate([(90, None), (None, 7), (100, 5)])
    ]
    gpu = {"available": True, "reason": "NVML: …", "samples": samples, "energy_j": None}
    metrics = write_metrics(write_run(tmp_path, FASTA, 1, run={"gpu": gpu}), 1)
    seen = metrics["runs"][0]["gpu"]
    assert (seen["utilisation_percent"], seen["power_w"], seen["sm_clock_mhz"]) == (95, None, 1700)
    assert (seen["peak_memory_bytes"], seen["energy_j"]) == (7, None)
    assert metrics["throughput"]["all"]["gpu_utilisation_percent"] == 95


def test_input_is_described_with_its_repeats_and_changes(paths):
    metrics = write_metrics(paths, 1)
    assert {**metrics, RECORD_DIGEST: ANY} == read_record(paths.metrics)
    assert (metrics["records"], metrics["unique"]) == (5, 4)
    assert metrics["duplicates"] == {"records": 1, "residues": 8}
    assert metrics["flags"]["upper_cased"] == 1
    assert metrics["lengths"] == {"min": 8, "median": 28, "mean": 134 / 5, "max": 50}


def test_median_of_an_even_number_of_records_lies_between_the_middle_two(tmp_path):
    paths = write_run(tmp_path, ">a\nMK\n>b\nMKV\n>c\nMKVL\n>d\nMKVLAAAAAA\n", 1)
    assert write_metrics(paths, 1)["lengths"]["median"] == 3.5
    assert length_counts(paths.shard_index).tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1]


def test_lengths_are_counted_over_an_index_of_any_size(tmp_path):
    lengths = np.arange(1_200_000, dtype=np.int32) % 7
    pq.write_table(pa.table({"length": lengths}), tmp_path / "index.parquet")
    counts = length_counts(tmp_path / "index.parquet")
    assert counts.tolist() == np.bincount(lengths).tolist()


def test_packs_that_lost_a_record_are_refused(paths):
    path = paths.shard_packs(0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(Damaged, match=str(path)):
        write_metrics(paths, 1)
    run = ShardRun.read(paths.shard_run(0))
    replace(run, packs_sha256=file_digest(path)).write(paths.shard_run(0))
    with pytest.raises(RuntimeError, match=r"shard 0: its packs hold 94 tokens, its records 134"):
        write_metrics(paths, 1)
    assert not paths.metrics.exists()


def test_a_clock_that_is_set_back_makes_no_negative_time(paths):
    run = read_json(paths.shard_run(0))
    write_record(paths.shard_run(0), run | {"finished": "2024-12-31T23:00:00+00:00"})
    elapsed = write_metrics(paths, 1)["throughput"]["elapsed"]
    assert elapsed["seconds"] == run["seconds"]["total"]


def test_recoveries_of_all_jobs_are_counted(tmp_path):
    disturbed = {"restarts": 2, "recomputed_packs": 5, "discarded_commits": 1}
    disturbed |= {"retried_packs": 3, "replanned_packs": 4}
    # Row 2 is the first of two identical sequences: the vector of row 4 is the same.
    disturbed["float32_rows"] = (2,)
    paths = write_run(tmp_path / "sample", FASTA, 1, run=disturbed)
    del disturbed["float32_rows"]
    assert write_metrics(paths, 1)["recoveries"] == disturbed | {"float32_records": 2}


def test_how_many_records_are_verified_is_told(paths):
    assert write_metrics(paths, 1)["drawn"] == asdict(DRAWN)
