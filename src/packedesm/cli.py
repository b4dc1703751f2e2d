"""The companion command: what the workflow does, for one sample, without Snakemake."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packedesm.commands.doctor import add_doctor
from packedesm.commands.embed import add_embed
from packedesm.commands.export import add_export
from packedesm.commands.models import add_fetch, add_models
from packedesm.commands.neighbours import add_neighbours
from packedesm.commands.parser import Parser
from packedesm.commands.streams import flushed, say
from packedesm.commands.variants import add_variants
from packedesm.errors import Fault, UserError, permissions_told, printable
from packedesm.log import LineFormatter, expect_end

# In the order in which help lists them.
_COMMANDS = (
    add_embed,
    add_fetch,
    add_export,
    add_neighbours,
    add_doctor,
    add_variants,
    add_models,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a fault, 2 the user's input."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, open to the end
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
    parser.add_argument("--version", action="version", version=metadata.version("packedesm"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
