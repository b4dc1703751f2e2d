import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packedesm.errors import Damaged
from packedesm.results.index_file import index_columns


@pytest.mark.parametrize("damage", ["no Parquet", "cut", "another column", "gone"])
def test_a_file_that_is_not_as_it_was_written_is_told_by_name(tmp_path, damage):
    path = tmp_path / "index.parquet"
    pq.write_table(pa.table({"row": [1, 2]}), path)
    assert index_columns(path, ["row"])["row"].to_pylist() == [1, 2]
    column = "row"
    if damage == "no Parquet":
        path.write_bytes(b"no Parquet")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        column = "length"
    with pytest.raises(Damaged, match=f"^{path}: is (not as it was written|gone)"):
        index_columns(path, [column])
