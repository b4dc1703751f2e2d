"""Tables of a run: what is written can be read by anyone, and what jobs wrote is read in order."""

from dataclasses import fields

from packedesm.embedding.pack import PackStatistics, read_packs
from packedesm.paths import Paths
from packedesm.report.tables import PACKING_COLUMNS, THROUGHPUT_COLUMNS, write_tables


def test_unknown_values_are_empty_cells_and_fractions_have_six_digits(tmp_path):
    row = dict.fromkeys({*PACKING_COLUMNS, *THROUGHPUT_COLUMNS})
    one = row | {"shard": 0, "tokens": 1_234_567, "fill": 2 / 3, "device": "a processor"}
    rows = {"shards": [one], "all": row | {"shard": "all"}}
    paths = Paths(tmp_path)
    write_tables(paths, {"packing": rows, "throughput": rows})
    assert paths.packing.read_text().splitlines() == [
        "\t".join(PACKING_COLUMNS),
        "0\t\t\t1234567\t\t0.666667" + "\t" * (len(PACKING_COLUMNS) - 6),
        "all" + "\t" * (len(PACKING_COLUMNS) - 1),
    ]
    assert [line.split("\t")[:2] for line in paths.throughput.read_text().splitlines()] == [
        ["shard", "device"],
        ["0", "a processor"],
        ["all", ""],
    ]


def test_packs_are_read_in_the_order_in_which_they_finished(tmp_path):
    path = tmp_path / "packs.tsv"
    finished = {0: 3, 1: 1.5, 2: 2}
    columns = [field.name for field in fields(PackStatistics)]
    lines = ["\t".join(columns)]
    for pack, seconds in finished.items():
        row = dict.fromkeys(columns, 1) | {"pack": pack, "finished_seconds": seconds}
        lines.append("\t".join(map(str, row.values())))
    path.write_text("\n".join(lines) + "\n")
    packs = read_packs(path)
    assert packs["pack"].tolist() == [1, 2, 0]
    assert packs["finished_seconds"].tolist() == [1.5, 2.0, 3.0]
    assert packs["fill"].dtype == float  # also where every value looks whole
