"""Where every file of one sample lies: the only place that knows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from packedesm.outputs import OUTPUTS, PAIR, RESIDUE, Array

WORK = ".work"
LETTERED = {"masked_marginals"}  # arrays that are read with the residues that stand there
EXPORTS = "exports"
COMMIT_SUFFIX = ".commit"  # of the files in a shard's state that hold finished packs
STANDARD_INPUT = Path("/dev/stdin")  # what `-` stands for


def named(path: Path) -> Path:
    """Return an input file as messages and reports name it."""
    return Path("standard input") if path == STANDARD_INPUT else path


class Paths:
    """Paths below `root`, the folder of one sample.

    `root` and `shard` may hold Snakemake wildcards such as ``{sample}``: the same object serves
    the rules and the command. Results lie in `root`; what only later steps read lies in
    ``root/.work``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.work = self.root / WORK
        self.index = self.root / "index.parquet"
        self.skipped = self.root / "skipped.tsv"
        self.manifest = self.root / "manifest.json"
        self.metrics = self.root / "metrics.json"
        self.packing = self.root / "packing.tsv"
        self.throughput = self.root / "throughput.tsv"
        self.verification = self.root / "verification.json"
        self.report = self.root / "report.html"
        self.residue_offsets = self.root / "residue_offsets.npy"
        self.residue_letters = self.root / "residue_letters.npy"
        self.contacts_offsets = self.root / "contacts_offsets.npy"
        self.exports = self.root / EXPORTS
        self.lock = self.work / "lock"
        self.locks = self.work / "locks"
        self.request = self.work / "request.json"
        self.checkpoint = self.work / "checkpoint.json"
        self.sharding = self.work / "sharding.json"
        self.choices = self.work / "choices"
        self.merging = self.work / "merging.json"
        # Apart from the steps' records: these say the same whenever a step has done the same.
        self.sharding_seconds = self.work / "sharding_seconds.json"
        self.merging_seconds = self.work / "merging_seconds.json"
        self.reporting = self.work / "reporting.json"
        self.shard_index = self.work / "index.parquet"
        self.shard_skipped = self.work / "skipped.tsv"

    @classmethod
    def of(cls, path: str | Path) -> Paths:
        """Return the paths of the sample that the file `path` belongs to."""
        folders = Path(path).parents
        work = next((folder for folder in folders[:3] if folder.name == WORK), None)
        return cls(work.parent if work else folders[0])

    def array(self, name: str) -> Path:
        """Return the merged array of a name, such as ``mean`` or ``mean.layer20``."""
        return self.root / f"{name}.npy"

    def offsets(self, per: str) -> Path | None:
        """Return where each record's lines begin in arrays of this kind; None: it has one line."""
        return {RESIDUE: self.residue_offsets, PAIR: self.contacts_offsets}.get(per)

    def arrays(self, names: Iterable[str]) -> list[Path]:
        """Return the files of arrays, and of the offsets and letters that they bring."""
        kinds = {name: Array.named(name).per for name in names}
        offsets = [self.offsets(per) for per in dict.fromkeys(kinds.values())]
        letters = [self.residue_letters] if LETTERED & kinds.keys() else []
        found = [*map(self.array, kinds), *(path for path in offsets if path is not None)]
        return [*found, *letters]

    def export(self, format: str) -> Path:
        """Return the record of an export in some format, see `packedesm.results.exports`."""
        return self.exports / f"{format}.json"

    def results(self) -> list[Path]:
        """Return every file that results may hold, whatever they were asked for.

        Of the arrays of single layers those that are there.
        """
        tables = [self.index, self.skipped, self.metrics, self.packing, self.throughput]
        arrays = [*self.arrays(OUTPUTS), *self._layer_arrays()]
        return [*arrays, *tables, self.verification, *self.drawn(), self.manifest]

    def drawn(self) -> list[Path]:
        """Return the files of the report, which are made of the other results alone."""
        return [self.report, *self.multiqc()]

    def _layer_arrays(self) -> Iterable[Path]:
        for path in sorted(self.root.glob("*.layer*.npy")):
            with suppress(ValueError):
                yield self.array(Array.named(path.stem).name)

    def multiqc(self) -> list[Path]:
        """Return the files that MultiQC finds: general statistics, packing, time, accuracy."""
        parts = ("", "_packing", "_time", "_accuracy")
        return [self.root / f"packedesm{part}_mqc.json" for part in parts]

    def work_names(self) -> set[str]:
        """Return the names that files and folders in the folder of work may have."""
        records = [self.lock, self.request, self.checkpoint, self.sharding, self.merging]
        seconds = [self.sharding_seconds, self.merging_seconds]
        files = [*records, *seconds, self.reporting, self.shard_index, self.shard_skipped]
        return {path.name for path in (*files, self.locks)} | {
            *("shards", "staging", "reference", "choices", "state", "embeddings")
        }

    def kept(self) -> bool:
        """Tell whether there is anything that a run has finished: packs, shards or results."""
        return bool(self.finished_work()) or any(path.exists() for path in self.results())

    def shard_fasta(self, shard: int | str) -> Path:
        """Return the clean FASTA of one shard; its ``.fai`` lies beside it."""
        return self.work / "shards" / f"{shard}.fasta"

    def shard_fai(self, shard: int | str) -> Path:
        """Return the faidx index of one shard's FASTA."""
        return self.work / "shards" / f"{shard}.fasta.fai"

    def shard_digests(self, shard: int | str) -> Path:
        """Return the digests of one shard's sequences, see `packedesm.packing.dataset`."""
        return self.work / "shards" / f"{shard}.fasta.sha256"

    def shard_files(self, shard: int | str) -> list[Path]:
        """Return all that the sharder writes of one shard."""
        return [self.shard_fasta(shard), self.shard_fai(shard), self.shard_digests(shard)]

    def shard_state(self, shard: int | str) -> Path:
        """Return the folder of what an unfinished job has done; it outlives a failed job."""
        return self.work / "state" / str(shard)

    def reference(self, part: str) -> Path:
        """Return the facts of one part of the reference, see `packedesm.reference.vectors`."""
        return self.work / "reference" / f"{part}.json"

    def reference_numbers(self, part: str) -> Path:
        """Return the vectors of one part of the reference."""
        return self.work / "reference" / f"{part}.npy"

    def reference_files(self, part: str) -> list[Path]:
        """Return both files of one part of the reference."""
        return [self.reference(part), self.reference_numbers(part)]

    def finished_work(self) -> list[Path]:
        """Return the committed packs and the finished shards of a run that was not merged."""
        commits = self.work.glob(f"state/*/*{COMMIT_SUFFIX}")
        return [*commits, *self.work.glob("embeddings/*/run.json")]

    def shard_array(self, shard: int | str, name: str) -> Path:
        """Return one array of one shard."""
        return self.work / "embeddings" / str(shard) / f"{name}.npy"

    def shard_packs(self, shard: int | str) -> Path:
        """Return the table with one line per pack of one shard."""
        return self.work / "embeddings" / str(shard) / "packs.tsv"

    def shard_run(self, shard: int | str) -> Path:
        """Return what one embedding job recorded about itself."""
        return self.work / "embeddings" / str(shard) / "run.json"
