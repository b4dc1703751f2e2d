"""`packedesm doctor`: tell whether a run would work on this machine."""

from __future__ import annotations

import argparse

from packedesm import config as configuration
from packedesm.commands.options import folder, in_words, results_folder, schema_options
from packedesm.commands.streams import answer
from packedesm.errors import Fault

# Options of a run that decide whether it works on a machine.
_OF_RUNS = ("model", "checkpoints", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.add_argument(
        "-o", "--output", type=folder, default="results", help="folder for the results"
    )
    for flag, key, described in schema_options():
        if key in _OF_RUNS:
            parser.add_argument(flag, dest=key, metavar="VALUE", help=in_words(described))
    parser.add_argument(
        "--digests", action="store_true", help="read large files of models too, to their end"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from packedesm.doctor.examine import Run, examine
    from packedesm.doctor.findings import as_json, screen, works

    given = {key: value for key in _OF_RUNS if (value := getattr(options, key)) is not None}
    config = configuration.resolve({"fasta": "-", **given})
    output = results_folder(options.output)
    model, checkpoints, device = (config[key] for key in _OF_RUNS)
    findings = examine(Run(output, model, checkpoints, device, options.digests))
    answer(as_json(findings) if options.json else screen(findings))
    if not works(findings):
        raise Fault("a run would not work here; what is amiss is above, with what to do")
