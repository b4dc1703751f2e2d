"""An index that is damaged is told in a line by every command that reads it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packedesm.cli import main
from packedesm.paths import Paths
from packedesm.results.exports.formats import FORMATS
from tests.commands import the_line
from tests.jobs import flip_a_bit


def other_id(index):
    """Write a whole index with another id in one row, in which Parquet itself sees no damage."""
    table = pq.read_table(index)
    ids = ["P9", *table["id"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, table.schema.field("id"), pa.array(ids)), index)


DAMAGES = {
    "a bit of the footer": lambda index: flip_a_bit(index, 0.97),
    "empty": lambda index: index.write_bytes(b""),
    "cut": lambda index: index.write_bytes(index.read_bytes()[:-100]),
    "a column less": lambda index: pq.write_table(pq.read_table(index).select(["row"]), index),
}
READERS = [
    *(["export", "--format", name] for name in FORMATS),
    ["export", "--format", "h5", "--keys", "biotrainer"],
    ["neighbours"],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_whoever_reads_a_damaged_index_says_so_in_a_line(own, capsys, damage):
    index = Paths(own).index
    DAMAGES[damage](index)
    for command, *options in READERS:
        assert main([command, str(own), *options]) == 1
        line = the_line(capsys.readouterr().err)
        assert f"{index}: is not as it was written, it is damaged" in line, options
    assert not Paths(own).exports.exists()


def test_no_export_calls_a_record_by_an_id_that_the_run_did_not_write(own, capsys):
    other_id(Paths(own).index)
    for name in FORMATS:
        assert main(["export", str(own), "--format", name]) == 1
        assert "index.parquet: is not as it was written" in the_line(capsys.readouterr().err)
    assert not Paths(own).exports.exists()
