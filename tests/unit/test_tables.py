"""Tables of a run: what is written can be read by anyone, and what jobs wrote is read in order."""

from packedesm.paths import Layout
from packedesm.report.tables import (
    PACK_TYPES,
    PACKING_COLUMNS,
    THROUGHPUT_COLUMNS,
    read_packs,
    write_tables,
)


def test_unknown_values_are_empty_cells_and_fractions_have_six_digits(tmp_path):
    row = dict.fromkeys({*PACKING_COLUMNS, *THROUGHPUT_COLUMNS})
    one = row | {"shard": 0, "tokens": 1_234_567, "fill": 2 / 3, "device": "a processor"}
    rows = {"shards": [one], "all": row | {"shard": "all"}}
    layout = Layout(tmp_path)
    write_tables(layout, {"packing": rows, "throughput": rows})
    assert layout.packing.read_text().splitlines() == [
        "\t".join(PACKING_COLUMNS),
        "0\t\t\t1234567\t\t0.666667\t\t\t\t",
        "all" + "\t" * 9,
    ]
    assert [line.split("\t")[:2] for line in layout.throughput.read_text().splitlines()] == [
        ["shard", "device"],
        ["0", "a processor"],
        ["all", ""],
    ]


def test_packs_are_read_in_the_order_in_which_they_finished(tmp_path):
    path = tmp_path / "packs.tsv"
    finished = {0: 3, 1: 1.5, 2: 2}
    lines = ["\t".join(PACK_TYPES)]
    for pack, seconds in finished.items():
        row = dict.fromkeys(PACK_TYPES, 1) | {"pack": pack, "finished_seconds": seconds}
        lines.append("\t".join(map(str, row.values())))
    path.write_text("\n".join(lines) + "\n")
    packs = read_packs(path)
    assert packs["pack"].tolist() == [1, 2, 0]
    assert packs["finished_seconds"].tolist() == [1.5, 2.0, 3.0]
    assert packs["fill"].dtype == float  # also where every value looks whole
