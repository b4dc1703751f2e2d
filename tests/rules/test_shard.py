import hashlib

import pandas as pd
from pyfaidx import Fasta

from packedesm.files import read_json
from packedesm.sequences.fasta import read_records

WORK = "results/sixty/.work"
RECORDS = ("index.parquet", "skipped.tsv", "sharding.json")


def test_shards_and_index_hold_the_input(run_rule, sixty):
    made = [f"{WORK}/shards/{k}.fasta{end}" for k in (0, 1) for end in ("", ".fai")]
    paths = run_rule("shard", *made, *(f"{WORK}/{name}" for name in RECORDS))
    index = pd.read_parquet(paths.shard_index)
    records = list(read_records(sixty))
    assert index["id"].tolist() == [record.id for record in records]
    digests = [hashlib.sha256(record.sequence).hexdigest() for record in records]
    assert index["sha256"].tolist() == digests

    rows = []
    for shard in (0, 1):
        with Fasta(str(paths.shard_fasta(shard)), build_index=False) as fasta:
            for name in fasta.records:
                assert str(fasta[name]).encode() == records[int(name)].sequence
                rows.append(int(name))
    assert rows == index["row"][index["duplicate_of"].isna()].tolist()
    costs = [shard["cost"] for shard in read_json(paths.sharding)["shards"]]
    assert max(costs) < 1.05 * min(costs)
