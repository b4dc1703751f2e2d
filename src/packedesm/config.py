"""Check the user's options against the schema and fill in its defaults."""

from __future__ import annotations

import copy
import difflib
import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from packedesm.errors import UserError, is_hidden, quote, quote_path
from packedesm.options import LengthPolicy
from packedesm.outputs import array_names
from packedesm.paths import WORK

if TYPE_CHECKING:
    import jsonschema

_SUFFIXES = (".fasta", ".fa", ".faa")
_COMPRESSED = (".gz", ".bgz")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,4})?", re.ASCII)
# Most bytes of a name that file systems take, and of a sample's: schedulers add to it.
_LONGEST_NAME, _LONGEST_SAMPLE = 255, 200
_PLACEHOLDER = re.compile("[{}]|<[a-z][a-z0-9_]*>")  # Snakemake's wildcards and "pathvars"
_PERIODIC = re.compile(r"(.+)\1{19}$")  # Snakemake fears an endless recursion in such names
# Snakemake hands a sample's name to a cluster's jobs through shells and a list separated by commas
# and does not protect what is special there; "%" is special in the names of Slurm's logs.
_NOT_IN_SAMPLES = set("/\\{}<>$`\"',%")


@cache
def schema() -> dict[str, Any]:
    """Return the configuration schema, the one place of names, descriptions and defaults."""
    text = resources.files("packedesm").joinpath("config.schema.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with the schema's defaults filled in, and numbers given as text read.

    Raises
    ------
    UserError
        For an unknown key, a missing one, a value of the wrong kind, or text that can be no
        path; names key and value.
    """
    _check_texts("", config)
    _check_finite("", config)
    resolved = _with_defaults(config, schema())
    for key in ("results", "checkpoints", "model"):
        if isinstance(resolved.get(key), str):
            resolved[key] = expanded(f"config key {key}", resolved[key])
    shown = resolved.get("report")
    if isinstance(shown, dict) and isinstance(table := shown.get("annotations"), str):
        shown["annotations"] = expanded("config key report.annotations", table)
    validator = _validator(schema())
    error = next(validator.iter_errors(resolved), None)
    if error is not None:
        raise UserError(_explain(error))
    LengthPolicy.of(resolved)  # raises if it cannot be
    if resolved["long_sequences"] == "window" and "contacts" in resolved["outputs"]:
        raise UserError(
            "outputs: contacts of a protein that is cut into windows would be missing between "
            "them; set long_sequences to truncate, full or error, or leave contacts out"
        )
    return resolved


def with_arrays(config: Mapping[str, Any], depth: int | None) -> dict[str, Any]:
    """Return a resolved configuration with ``arrays``: the names of the arrays that it makes.

    Parameters
    ----------
    depth
        Layers of the model, see `packedesm.outputs.array_names`, which raises UserError.
    """
    names = array_names(config["outputs"], config["layers"], depth)
    return {**config, "arrays": list(names)}


def samples(
    fasta: str | list[str] | dict[str, str | list[str]], place: Callable[[str], str] = str
) -> dict[str, list[Path]]:
    """Return the FASTA files of each sample.

    A path's sample is its file name without ``.gz`` and ``.fasta``, ``.fa`` or ``.faa``. `place`
    gives where the file of a path lies; it may be made later.

    Raises
    ------
    UserError
        If two paths make the same sample, a name cannot be a folder, or what is there is no file.
    """
    if isinstance(fasta, dict):
        named = {
            name: paths if isinstance(paths, list) else [paths] for name, paths in fasta.items()
        }
    else:
        named = {}
        for path in [fasta] if isinstance(fasta, str) else fasta:
            name = sample_name(Path(path))
            if name in named:
                raise UserError(
                    f"config key fasta: {named[name][0]} and {path} are both sample {name!r}; "
                    "name them apart with a mapping of sample to path"
                )
            named[name] = [path]
    for name, paths in named.items():
        _check_sample_name(name)
        for path in paths:
            there = Path(place(str(path)))
            check_readable(there, to_come=True)
            _check_placeholders("fasta", str(path))
            if there.exists() and not there.is_file():
                raise UserError(
                    f"{path}: can be read only once, and jobs that run again read it again; write "
                    "it to a file (config key fasta)"
                )
    return {name: [Path(path) for path in paths] for name, paths in named.items()}


def sample_name(path: Path) -> str:
    """Return the sample that a FASTA path stands for when the user does not name one."""
    name = path.name
    for suffixes in (_COMPRESSED, _SUFFIXES):
        for suffix in suffixes:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return name


def check_readable(path: Path, *, to_come: bool = False) -> None:
    """Raise UserError unless `path` is a file (or a pipe) that exists, or may be `to_come`."""
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        if to_come:
            return
        raise UserError(f"{path}: no such FASTA file; check the path (config key fasta)") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{quote_path(path)}: cannot be a FASTA file ({reason}); check the path "
            "(config key fasta)"
        ) from None
    if folder:
        raise UserError(f"{path}: is a folder, not a FASTA file (config key fasta)")


def check_path(source: str, text: str) -> None:
    """Raise UserError if `text` is a web address, too long, or holds characters that are not seen.

    Snakemake and other programs print paths as they are, so those that would not be printed as
    they read are refused here, once. `source` says in the message where the text comes from.
    """
    if any(map(is_hidden, text)):
        raise UserError(
            f"{source}: {quote(text)} holds characters that cannot be seen, such as line ends; "
            "rename the file or folder, or make a link to it"
        )
    if _ADDRESS.match(text):
        raise UserError(
            f"{source}: {quote(text, 200)} is a web address, and only files on this machine are "
            "read and written; download it first, or copy results there afterwards"
        )
    if any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise UserError(
            f"{source}: {quote(text)} is too long; the names in a path have at most "
            f"{_LONGEST_NAME} bytes"
        )


def expanded(source: str, text: str) -> str:
    """Return a path without a ``~`` at its beginning; UserError if it leads to another place.

    A folder of results must be the same one before and after folders on the way to it are made, and
    is none that a run works in. `source` says in the message where the text comes from.
    """
    try:
        path = Path(text).expanduser()
        Path.cwd()
    except RuntimeError:
        raise UserError(f"{source}: {quote(text)} names a home that is not known here") from None
    except FileNotFoundError:
        raise UserError("the working directory is gone; change to one that is there") from None
    if WORK in path.parts:
        raise UserError(f"{source}: {quote(text)} leads into a folder {WORK}, where runs work")
    for above, name in zip(path.parents, path.parts[::-1], strict=False):
        if name == ".." and not above.exists():
            raise UserError(f"{source}: {quote(text)} leads back from a folder that is not there")
    return str(path) if text.startswith("~") else text


def _check_sample_name(name: Any) -> None:
    if not isinstance(name, str):
        raise UserError(f"config key fasta: sample {name!r} is not text; put it in quotes")
    long = len(name.encode(errors="replace")) > _LONGEST_SAMPLE
    odd = name.startswith(".") or not name.isprintable() or bool(set(name) & _NOT_IN_SAMPLES)
    if not name or long or odd or _PERIODIC.search(name):
        raise UserError(
            f"config key fasta: sample {quote(name)} cannot name a folder and its jobs; use "
            f"at most {_LONGEST_SAMPLE} letters, digits, '.', '_' and '-', or name the sample "
            "with a mapping of sample to path"
        )


def _check_placeholders(key: str, path: str) -> None:
    """Refuse what Snakemake would replace in a path: another file might be there."""
    if found := _PLACEHOLDER.search(path):
        raise UserError(
            f"config key {key}: {quote(path, 200)} holds {found[0]}, which Snakemake replaces in "
            "paths; rename the file or folder, or make a link to it"
        )


def _check_texts(key: str, value: Any) -> None:
    """Check every text of a configuration, which may be a path, with `check_path`."""
    if isinstance(value, str):
        check_path(f"config key {key}", value)
        if key in ("results", "model", "report"):
            _check_placeholders(key, value)
    elif isinstance(value, Mapping):
        for below, inner in value.items():
            _check_texts(key or str(below), inner)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(key, inner)


def _with_defaults(config: Any, part: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of one level of the configuration with its defaults, and of those below."""
    filled = copy.deepcopy(dict(config))
    for key, described in part["properties"].items():
        if "default" in described:
            filled.setdefault(key, copy.deepcopy(described["default"]))
        if key in filled:
            filled[key] = _typed(filled[key], described)
        if "properties" in described and isinstance(filled.get(key), dict):
            filled[key] = _with_defaults(filled[key], described)
    return filled


def _typed(value: Any, described: dict[str, Any]) -> Any:
    """Return a number or truth value that came as text, and a whole number that came as 2.0.

    Text is what the command line gives, and Snakemake for what is nested in ``--config``. Numbers
    are decimal: YAML would read 010 as eight and 1:30 as ninety.
    """
    validator = _validator(described)
    if isinstance(value, list) and "items" in described:
        return [_typed(item, described["items"]) for item in value]
    if isinstance(value, float) and value.is_integer() and validator.is_valid(int(value)):
        return int(value)
    if not isinstance(value, str) or validator.is_valid(value):
        return value
    for read in _readings(value):
        if validator.is_valid(read):
            return int(read) if isinstance(read, float) and read.is_integer() else read
    return value


def _readings(text: str) -> Iterator[Any]:
    """Yield what a text may stand for."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        yield text.lower() == "true"
    if _INTEGER.fullmatch(text):
        yield int(text)
    elif _NUMBER.fullmatch(text):
        yield float(text)
    elif text.startswith(("[", "{")):
        with suppress(yaml.YAMLError):
            yield yaml.safe_load(text)


def _check_finite(key: str, value: Any) -> None:
    """Refuse infinity and NaN, which no comparison with a limit would notice."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"config key {key}: {value} is no number to compare with; give a finite one"
        )
    if isinstance(value, Mapping):
        for below, inner in value.items():
            _check_finite(f"{key}.{below}" if key else str(below), inner)


def _validator(described: dict[str, Any]) -> jsonschema.Draft202012Validator:
    import jsonschema  # here: the list of models and the help need it not

    return jsonschema.Draft202012Validator(described)


def _explain(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    described: Any = error.schema
    given: Any = error.instance
    asked: Any = error.validator_value
    if error.validator == "additionalProperties":
        known = list(described["properties"]) if "properties" in described else []
        unknown = next(key for key in given if key not in known)
        close = difflib.get_close_matches(str(unknown), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
        return f"unknown config key {quote('.'.join(filter(None, [where, str(unknown)])))}; {hint}"
    if error.validator == "required":
        missing = next(key for key in asked if key not in given)
        return f"config key {missing!r} is missing; set it in config.yaml or with --config"
    if error.validator == "uniqueItems":
        return f"config key {where}: {given!r} names one twice; give each once"
    allowed = _allowed(described)
    shown = repr(given)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    return f"config key {where}: {shown} is not allowed; give {allowed}"


def _allowed(part: dict[str, Any]) -> str:
    """Describe in words what a part of the schema admits."""
    if "oneOf" in part:
        return " or ".join(_allowed(choice) for choice in part["oneOf"])
    if "const" in part:
        return repr(part["const"])
    if "enum" in part:
        return "one of " + ", ".join(part["enum"])
    limits = [
        f"{word} {part[key]}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("minItems", "of at least"),
        )
        if key in part
    ]
    kinds = {"object": "a mapping", "array": "a list", "integer": "a whole number"}
    kinds |= {"number": "a number", "string": "a non-empty text", "boolean": "true or false"}
    return " ".join([kinds[part["type"]], *limits])
