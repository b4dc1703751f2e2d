"""What a run was asked for: on one kind of machine, one request has the same results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packedesm.errors import Damaged, UserError
from packedesm.esm2.model_files import REGRESSION
from packedesm.files import read_record, write_record
from packedesm.paths import named
from packedesm.results.inputs import Input, check_read
from packedesm.versions import versions

FORMAT = 1
# What changes no vector, nor where it stands: where things lie, how a job works, what is made of
# results. The device is one of them so that whoever turns to another one keeps what is finished.
NOT_DECIDING = (
    *("fasta", "results", "model", "checkpoints", "device", "workers", "commit_seconds"),
    *("commit_packs", "cluster", "exports", "report"),
)
# What decides how results are verified, and no vector: compared only with what is finished.
ONLY_VERIFIED = ("verify", "seed")


def input_files(config: Mapping[str, Any]) -> list[Path]:
    """Return the FASTA files of a run of the command: one sample, in this order."""
    fasta = config["fasta"]
    return [Path(path) for path in ([fasta] if isinstance(fasta, str) else fasta)]


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in NOT_DECIDING}


@dataclass(frozen=True)
class Request:
    """What decides the results of a run."""

    inputs: tuple[Input, ...]
    weights: tuple[Input, ...]
    options: dict[str, Any]  # of the configuration, by key
    model: str  # as the user named it
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        weights: Sequence[Path],
        known: Request | None = None,
        *,
        weights_sha256: str | None = None,
    ) -> Request:
        """Return the request of a resolved configuration.

        Parameters
        ----------
        weights
            The files that hold them.
        known
            An earlier request on the same folder, whose digests are taken over for files that have
            not been touched since.
        weights_sha256
            The digest of all their bytes, if it is known.
        """
        before: dict[str, dict[str, Any]] = {}
        if known is not None:
            before = {entry.path: asdict(entry) for entry in (*known.inputs, *known.weights)}

        def read(path: Path, sha256: str | None = None) -> Input:
            return Input.of(path, before.get(str(path.absolute())), sha256)

        digest = weights_sha256 if len(weights) == 1 else None

        plain = json.loads(json.dumps(dict(config), default=str))
        return cls(
            inputs=tuple(map(read, input_files(config))),
            weights=tuple(read(path, digest) for path in weights),
            options=_deciding(plain),
            model=config["model"],
            versions=versions(),
        )

    @classmethod
    def read(cls, path: Path) -> Request | None:
        """Read a request; None if there is none, UserError if it is damaged."""
        try:
            return cls.from_json(read_record(path))
        except FileNotFoundError:
            return None
        except (ValueError, OSError, RecursionError, Damaged):
            raise UserError(
                f"{path}: is damaged or of another version; give a new folder, or --force to start "
                "over in this one"
            ) from None

    @classmethod
    def from_json(cls, content: Any) -> Request:
        """Return what `as_json` gave; ValueError if it did not give this."""
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            files = {
                name: tuple(Input.from_json(entry) for entry in content[name])
                for name in ("inputs", "weights")
            }
            # What could not be chosen before, without what decided then.
            options = _deciding({"ids": "first_word", **content["options"]})
            versions = dict(content["versions"])
            return cls(**files, options=options, model=str(content["model"]), versions=versions)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a request: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format": FORMAT, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the request, atomically."""
        write_record(path, self.as_json())

    def check_read(self, digests: Sequence[str]) -> None:
        """Raise UserError unless the bytes that were read of each input are those of the request.

        `digests` are those of what was read, in the order of the inputs.
        """
        known = [source.in_words() for source in self.inputs]
        check_read([source.path for source in self.inputs], known, digests)

    def differences(self, other: Request, *, finished: bool) -> list[str]:
        """Return in words what `other`, the earlier one, has otherwise; nothing if it is the same.

        Parameters
        ----------
        finished
            `other` is finished: it was verified as it asked for.
        """
        found = self._other_inputs(other)
        weights = [request._model_digests(regression=False) for request in (self, other)]
        # Weights that are gone after a run have no digest: then the name has to do.
        if weights[0] != weights[1] and (weights[0] or self.model != other.model):
            found.append("the model is another one")
        regression = [request._model_digests(regression=True) for request in (self, other)]
        # Where contacts were not asked for, that they are is what is told below.
        contacts = regression[0] and "contacts" in other.options.get("outputs", ())
        if contacts and regression[0] != regression[1]:
            found.append(f"{self.weights[-1].path} is another one, which contacts come from")
        for key in sorted(self.options.keys() | other.options.keys()):
            now, before = self.options.get(key), other.options.get(key)
            if now != before and (finished or key not in ONLY_VERIFIED):
                found.append(f"{key} was {before!r}, is {now!r}")
        for name in sorted(self.versions.keys() | other.versions.keys()):
            now, before = self.versions.get(name), other.versions.get(name)
            if now != before:
                found.append(f"{name} was version {before}, is {now}")
        return found

    def _other_inputs(self, other: Request) -> list[str]:
        """Return in words why the inputs are not, or may not be, those of the earlier request."""
        for request, was in ((other, "was"), (self, "is")):
            for entry in request.inputs:
                if entry.sha256 is None:
                    name = named(Path(entry.path))
                    return [f"an input {was} read from {name}, which can be read only once"]
        digests = [[entry.sha256 for entry in request.inputs] for request in (self, other)]
        return [] if digests[0] == digests[1] else ["the FASTA is another one"]

    def _model_digests(self, *, regression: bool) -> list[str | None]:
        """Return the digest of the contact regression, if there is one; or those of the others."""
        files = (entry for entry in self.weights if entry.path.endswith(REGRESSION) == regression)
        return [entry.sha256 for entry in files]
