"""What a call is asked for: the same options as those of a run, with the same defaults and checks.

This module is the edge of the house for programs, as `packedesm.commands` is for a terminal.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from packedesm import config
from packedesm.errors import UserError, quote
from packedesm.options import EmbedOptions, ShardOptions
from packedesm.outputs import array_names

Function = TypeVar("Function", bound=Callable[..., Any])


class LengthKeys(TypedDict, total=False):
    """What happens to long proteins; as the keys of the configuration."""

    max_length: int
    long_sequences: str
    window_overlap: int


class CallKeys(LengthKeys, total=False):
    """What one call may be asked for besides outputs and layers; as the keys of a run."""

    empty_sequences: str
    ids: str
    deduplicate: bool
    token_budget: int | str
    output_dtype: str
    workers: int | str
    seed: int


class ModelKeys(CallKeys, total=False):
    """What a call that loads its model may be asked for; `check` is that of `load_model`."""

    dtype: str
    device: Any
    checkpoints: str | Path
    attention: str
    check: bool


def resolved(function: str, keys: Mapping[str, Any], allowed: type) -> dict[str, Any]:
    """Return a whole configuration for the keys of a call, checked as that of a run.

    Parameters
    ----------
    function
        What was called, for messages.
    allowed
        One of the classes above, whose names the keys may have.

    Raises
    ------
    UserError
        For an unknown key or a value that is not allowed.
    """
    known = _names(allowed)
    for key in keys:
        if key not in known and key not in ("outputs", "layers"):
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise UserError(f"{function}() takes no {quote(key)}; {hint}")
    asked = {"fasta": "sequences"} | {key: _plain(key, keys[key]) for key in keys}
    try:
        return dict(_resolved(_Asked(repr(asked), asked)))
    except UserError as error:
        raise UserError(str(error).removeprefix("config key ")) from None


def call_options(found: Mapping[str, Any], depth: int) -> tuple[ShardOptions, EmbedOptions]:
    """Return how sequences are read and embedded, for a model of so many layers.

    Raises
    ------
    UserError
        If the model has no such layer.
    """
    names = list(array_names(found["outputs"], found["layers"], depth))
    return ShardOptions.of(found), EmbedOptions.of({**found, "arrays": names})


def with_keys(allowed: type) -> Callable[[Function], Function]:
    """Let a function with ``**keys`` show in its signature which there are, with their defaults."""

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = config.schema()["properties"]
        for name in _names(allowed):
            default = known.get(name, {"default": True})["default"]
            shown.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
        function.__dict__["__signature__"] = signature.replace(parameters=shown)
        return function

    return show


def _names(allowed: type) -> dict[str, None]:
    """Return the keys of one of the classes, those of its bases first."""
    return dict.fromkeys(allowed.__annotations__)


@dataclass(frozen=True)
class _Asked:
    """The keys of a call, which are the same if they are written the same: True is not 1."""

    text: str
    keys: dict[str, Any] = field(compare=False)


@lru_cache(maxsize=64)
def _resolved(asked: _Asked) -> dict[str, Any]:
    """Return the configuration; to check it takes longer than to embed a few proteins."""
    return config.resolve(asked.keys)


def _plain(key: str, value: Any) -> Any:
    """Return a value of a call as a configuration has it; one name may stand for a list of one."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numbers of numpy
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | Mapping) and isinstance(value, Iterable):
        return [_plain("", inner) for inner in value]
    return [value] if key in ("outputs", "layers") else value
