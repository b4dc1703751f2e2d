"""The companion command: what the workflow does, for one sample, without Snakemake."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from packedesm.commands.parser import Parser
from packedesm.commands.streams import closed, flushed, say
from packedesm.errors import Fault, UserError, permissions_told, printable
from packedesm.log import LineFormatter, expect_end

# What each command does, in the order in which help lists them. The module of that name in the room
# has its arguments and the rest; of the others nothing is imported.
_COMMANDS = {
    "embed": "embed the proteins of FASTA files",
    "fetch": "download a model and check it",
    "export": "write finished results as other tools read them",
    "neighbours": "list the nearest proteins of each, by the cosine of their vectors",
    "doctor": "tell whether a run would work on this machine",
    "variants": "score mutations by the masked marginals of a finished run",
    "models": "list the models by name",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a fault, 2 the user's input."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, closed())
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever can be written is
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:
        taken = flushed()
        raise SystemExit(end.code or int(not taken)) from None
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.raiseExceptions = False  # a log that nobody can read is no reason for a traceback
    status = _run(options)
    flushed()
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        with permissions_told():
            options.run(options)
    except (UserError, Fault) as error:
        say(f"packedesm: {error}", sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except SystemExit:  # a signal stopped it
        expect_end()
        raise
    except KeyboardInterrupt:
        expect_end()
        said = "packedesm: interrupted; what is finished is kept, the same command goes on"
        say(said, sys.stderr)
        return 130
    except Exception as error:
        logging.exception("this is a fault of packedesm or of the machine, not of the input")
        say(printable(f"packedesm: {type(error).__name__}: {error}"), sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="packedesm", description="ESM-2 embeddings of proteins, packed: without padding."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, does in _COMMANDS.items():
        commands.add_parser(name, help=does).module = f"packedesm.commands.{name}"
    return parser


class _Version(argparse.Action):
    """Look it up when it is asked for: that takes a fifth of the time of any other help."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> NoReturn:
        from importlib.metadata import version

        parser._print_message(f"{version('packedesm')}\n", sys.stdout)
        parser.exit()


if __name__ == "__main__":
    raise SystemExit(main())
