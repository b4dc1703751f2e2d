"""Generated FASTA files, sane and mad: every record comes back as the policy says, or one line."""

import shutil
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packedesm.errors import UserError
from packedesm.paths import Paths
from packedesm.sequences.fasta import read_blocks
from packedesm.sequences.shards import write_shards
from tests.fasta_inputs import all_options, inputs
from tests.fasta_oracle import Options, Refused, content_of, expected, lines_of, records_of

MEMORY = Path("/dev/shm")  # where there is one: ten thousand folders and no disk


def shard_and_compare(folder: Path, contents: list[bytes], options: Options, block: int) -> str:
    """Shard the files, and compare with the oracle; return what they came to."""
    files = [folder / f"{k}.fasta" for k in range(len(contents))]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    try:
        rows = expected(contents, options)
    except Refused:
        rows = None
    compare_reader(files, contents, block, options.ids)
    paths = Paths(folder / "out")
    try:
        summary = write_shards(files, paths, options.typed(), shards=options.shards, width=64)
    except UserError as error:
        message = str(error)
        assert rows is None, message
        assert message.isprintable(), message
        assert len(message.replace(str(folder), "")) < 1000  # whatever the folder is called
        assert sorted(folder.iterdir()) == files
        return "refused"
    assert rows is not None, "an odd file was taken for a sound one"
    compare_outputs(paths, summary, rows, options)
    return "embedded" if len(rows) == summary["unique"] else "embedded, with duplicates"


def compare_reader(paths: list[Path], contents: list[bytes], block: int, ids: str) -> None:
    """The reader alone, with blocks so small that every boundary falls everywhere."""
    for path, content in zip(paths, contents, strict=True):
        if len(content) > 10_000:
            continue
        try:
            found = records_of(lines_of(content_of(content)), ids)
            wanted = [(*r[:3], tuple(r[3])) for r in found]
        except Refused:
            with pytest.raises(UserError):
                list(read_blocks(path, block, ids=ids))
        else:
            blocks = read_blocks(path, block, ids=ids)
            assert [tuple(r) for records in blocks for r in records] == wanted


def compare_outputs(paths: Paths, summary: dict, rows: list[dict], options: Options) -> None:
    index = pyarrow.parquet.read_table(paths.shard_index).to_pylist()
    assert index == [{k: v for k, v in row.items() if k != "sequence"} for row in rows]
    own = [(row["row"], row["sequence"]) for row in rows if row["duplicate_of"] is None]
    found = [record for k in range(options.shards) for record in shard_records(paths, k)]
    assert found == own
    assert (summary["records"], summary["unique"]) == (len(rows), len(own))
    assert summary["residues"] == sum(row["length"] for row in rows)
    flags = Counter(flag for row in rows for flag in row["flags"].split(",") if flag)
    assert summary["flags"] == flags
    skipped = paths.shard_skipped.read_text().splitlines()[1:]
    assert len(skipped) == summary["skipped_empty"]
    kept = {paths.shard_index, paths.shard_skipped, paths.sharding, paths.sharding_seconds}
    kept |= {path for k in range(options.shards) for path in paths.shard_files(k)}
    assert {path for path in paths.root.rglob("*") if path.is_file()} == kept
    assert not any(not warning.isprintable() for warning in summary["warnings"])


def shard_records(paths: Paths, shard: int) -> list[tuple[int, bytes]]:
    """Read a shard twice, by its lines and by its index, and return its records."""
    data = paths.shard_fasta(shard).read_bytes()
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert all(line.startswith(b">") for line in lines[::2])
    records = [(int(line[1:]), lines[2 * k + 1]) for k, line in enumerate(lines[::2])]
    indexed = []
    for line in paths.shard_fai(shard).read_text().splitlines():
        row, length, offset, bases, width = map(int, line.split("\t"))
        assert (bases, width) == (length, length + 1)
        indexed.append((row, data[offset : offset + length]))
    assert indexed == records
    return records


def fuzz(examples: int, *, derandomize: bool) -> Counter:
    """Run so many generated inputs and count what became of them."""
    counts: Counter[str] = Counter()
    base = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)

    @settings(
        max_examples=examples,
        deadline=timedelta(seconds=10),
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs, all_options, st.sampled_from([1, 2, 3, 7, 64]))
    def check(contents, options, block):
        counts["failed"] += 1
        with tempfile.TemporaryDirectory(dir=base) as folder:
            counts[shard_and_compare(Path(folder), contents, options, block)] += 1
        counts["failed"] -= 1

    try:
        check()
    finally:
        shutil.rmtree(base)
    return +counts


def in_words(counts: Counter) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{counts.total()} generated FASTA inputs: {kinds}"


def test_generated_inputs_come_back_whole_or_are_refused_in_one_line(tell):
    counts = fuzz(400, derandomize=True)
    tell(in_words(counts))
    assert counts["refused"] > 30
    assert counts["embedded"] + counts["embedded, with duplicates"] > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("examples", [300, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_generated_inputs_that_are_new_in_every_run(tell, examples):
    counts = fuzz(examples, derandomize=False)
    tell(in_words(counts))
    assert counts.total() >= examples
    assert counts["embedded, with duplicates"] > examples // 100
