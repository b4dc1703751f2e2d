"""The parser of the command's arguments."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from packedesm.errors import printable

_FLAG = re.compile(r"--[a-z][a-z-]*")
_NUMBERS = re.compile(r"-[0-9]+\s*,")  # how a list of layers may begin; of one argparse knows


class Parser(argparse.ArgumentParser):
    """One whose messages are printable, and which takes ``--layers -1,0``.

    Attributes
    ----------
    module : str or None
        One whose ``add_arguments`` adds the arguments when they are needed: who asks for help, or
        for another command, need not wait for what the module imports.
    """

    module: str | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse arguments; the parsers of subcommands are called by this name too."""
        if self.module is not None:
            module, self.module = import_module(self.module), None
            module.add_arguments(self)
        given = _joined(sys.argv[1:] if args is None else args)
        found, left = super().parse_known_args(given, namespace)
        several = any(action.nargs == "+" for action in self._get_positional_actions())
        if several and left and not left[0].startswith("-"):  # argparse takes them from one place
            self.error(
                f"unrecognized arguments: {' '.join(left)} (FASTA files stand together, all before "
                "the options or all after them)"
            )
        return found, left

    def error(self, message: str) -> NoReturn:
        """Exit with the line that is told."""
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        try:  # argparse would pass over a stream that does not take it
            (file or sys.stderr).write(message)
        except OSError:
            raise SystemExit(1 if file is sys.stdout else 2) from None


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return arguments with lists that begin as ``-1,`` joined to their flags by ``=``.

    argparse would take such a list for a flag.
    """
    joined: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return joined + list(arguments[place:])
        if joined and _NUMBERS.match(argument) and _FLAG.fullmatch(joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
