import pytest

from packedesm.errors import UserError
from packedesm.sequences import given
from packedesm.sequences.records import records_of
from tests.typed import shard_options


def test_many_items_come_in_blocks_and_keep_their_places(monkeypatch):
    monkeypatch.setattr(given, "_AT_ONCE", 3)
    texts = ["MK" + "A" * n for n in range(8)]
    records = records_of(texts, shard_options())
    assert [s.decode() for s in records.sequences] == texts
    assert records.table["id"].to_pylist() == [str(n) for n in range(8)]
    assert records.table["row"].to_pylist() == list(range(8))
    with pytest.raises(UserError, match="item 7: "):
        records_of([*texts[:7], "M-"], shard_options())
