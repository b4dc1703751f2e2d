"""What the workflow's rules ask while they are planned: one request, and what is there of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packedesm.errors import Damaged, UserError
from packedesm.files import read_record, write_record
from packedesm.options import ReportOptions
from packedesm.outputs import needs
from packedesm.paths import Paths
from packedesm.results.exports.record import outdated_exports
from packedesm.results.folder import refuse_foreign_sample
from packedesm.results.inputs import MISSING, describe
from packedesm.results.new_file import lies_in_results
from packedesm.results.outdated import (
    embedded_as,
    gone_results,
    kept_number,
    outdated_checkpoint,
    outdated_steps,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planning:
    """One use of the workflow, which may be one of several modules of another workflow.

    Parameters
    ----------
    options
        The resolved configuration.
    samples, weights
        The FASTA files of each sample, and those of a model that is named by its path; as the rules
        name them. What is not there may be the output of another rule.
    base
        The files of the published model that `weights` are an adapter of; or none.
    place
        Gives where a file lies that the rules name: a module may have a prefix.
    memory
        Folder of what is kept for those who plan the same later.
    """

    options: Mapping[str, Any]
    samples: Mapping[str, Sequence[Path]]
    weights: Sequence[str]
    base: Sequence[Path]
    place: Callable[[str], str]
    memory: Path

    def sample(self, name: str) -> Paths:
        """Return where the folder of a sample lies."""
        return self._placed(Paths(f"{self.options['results']}/{name}").manifest)

    def embedded_as_asked(self, name: str, shard: int) -> bool:
        """Tell whether a shard of a sample was embedded, with the options of now."""
        return embedded_as(self.sample(name), shard, self.options)

    def refuse_foreign(self) -> None:
        """Raise UserError if the folder of a sample holds what the workflow did not make.

        Or if its samples would lie in a folder of results, which would not be whole for that run.
        """
        for name in self.samples:
            refuse_foreign_sample(self.sample(name))
        if lies_in_results(self._run.work):
            raise UserError(
                f"{self._results}: is or lies in a folder of results of another run; set `results` "
                "to another folder"
            )

    def number_of_shards(self, found: int) -> int:
        """Return the number of shards; what ``auto`` was stands, as long as the shards do.

        Another number would make them all anew, and how many GPUs are seen changes: one is lost,
        the device is another, or finished results are looked at where there is none.

        Parameters
        ----------
        found
            The number that the configuration comes to now.
        """
        if self._given is not None:
            return found
        kept = {self._kept_number(name) for name in self.samples} - {None}
        before = kept.pop() if len(kept) == 1 else None
        if before not in (None, found):
            logger.warning(
                "shards: auto stays %d, as these results were begun; for as many as there are "
                "GPUs now, which makes them all anew, say shards=%d",
                *(before, found),
            )
        return before or found

    def remember_shards(self, shards: int) -> None:
        """Keep what ``shards: auto`` came to, for `remembered_shards`."""
        known = self._remembered()
        if self._given is None and known.get(self._results) != shards:
            write_record(self._shards, known | {self._results: shards})

    def remembered_shards(self) -> int:
        """Return the number of shards in a job, which may see other GPUs than who planned it.

        Raises
        ------
        UserError
            If the job cannot read it.
        """
        shards = self._given or self._remembered().get(self._results)
        if shards is None:
            raise UserError(
                f"shards: auto was settled where the run was started, and {self._shards.absolute()}"
                " cannot be read here; give a number of shards"
            )
        return int(shards)

    def outdated_checkpoint(self) -> list[Path]:
        """Return the record of the checkpoint if the model is another one now."""
        weights = self._described([*self.weights, *self.base])
        heads = needs(self.options["outputs"])
        return outdated_checkpoint(self._run, self.options["model"], weights, heads)

    def outdated_steps(self, name: str, shards: int) -> list[Path]:
        """Return what a sample's steps shall write again.

        That is the records of those that were given something else than now, and files of finished
        results that are gone or were changed.
        """
        paths = self.sample(name)
        gone = gone_results(paths, self.options)
        if not paths.sharding.exists():
            return gone
        inputs = self._described(self.samples[name])
        table = ReportOptions.of(self.options).table
        (read,) = self._described([table]) if table else [MISSING]
        return [*gone, *outdated_steps(self._run, paths, self.options, inputs, shards, read)]

    def outdated_exports(self, name: str) -> list[Path]:
        """Return the records of a sample's exports of which a file is gone."""
        return outdated_exports(self.sample(name), self.options["exports"])

    def _kept_number(self, name: str) -> int | None:
        paths = self.sample(name)
        if not paths.sharding.exists():
            return None
        return kept_number(paths, self.options, self._described(self.samples[name]))

    def _described(self, files: Sequence[str | Path]) -> list[str]:
        """Return what identifies input files.

        Snakemake itself looks at times, and misses a file that was replaced by an older one.
        """
        there = [Path(self.place(str(file))) for file in files]
        return describe(there, self.memory / "packedesm-inputs.json")

    @property
    def _given(self) -> int | None:
        return None if self.options["shards"] == "auto" else int(self.options["shards"])

    @property
    def _run(self) -> Paths:
        return self._placed(Paths(self.options["results"]).checkpoint)

    @property
    def _results(self) -> str:
        return str(self._run.root)

    def _placed(self, file: Path) -> Paths:
        # A module may give another place to the files in a folder, and none to the folder.
        return Paths.of(self.place(str(file)))

    @property
    def _shards(self) -> Path:
        return self.memory / "packedesm-shards.json"

    def _remembered(self) -> dict[str, Any]:
        try:
            return read_record(self._shards)
        except (FileNotFoundError, Damaged):
            return {}
