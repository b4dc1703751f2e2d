"""`packedesm embed`: the steps of the workflow for one sample, without Snakemake."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packedesm import config as configuration
from packedesm.commands.options import folder, in_words, results_folder, schema_options
from packedesm.commands.streams import say
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import UserError, permissions_told
from packedesm.esm2.input_files import present_files
from packedesm.esm2.registry import locate
from packedesm.files import explained, read_record
from packedesm.options import ReportOptions
from packedesm.outputs import needs
from packedesm.paths import STANDARD_INPUT, Paths, named
from packedesm.results.exports.configured import add_missing
from packedesm.results.folder import at_rest, clean_up, finished_request, refuse_foreign, working_in
from packedesm.results.inputs import check_together
from packedesm.results.new_file import lies_in_results
from packedesm.results.redrawing import kept_of_steps, record_redrawn, why_redraw
from packedesm.results.request import Request, input_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.add_argument(
        "fasta",
        nargs="+",
        help="FASTA files, together one sample: plain, gzip or bgzip; - is standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=folder,
        required=True,
        help="folder for the results: new, empty, or of the same run, which goes on",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start over in a folder that holds results or an unfinished run",
    )
    parser.add_argument(
        "--devices",
        help="which devices to use, with one process on each: GPUs by number or UUID, such as 0,2, "
        "or cpu. Default: every GPU, where device allows it.",
    )
    for flag, key, described in schema_options():
        parser.add_argument(flag, dest=key, metavar="VALUE", help=in_words(described))
    parser.set_defaults(run=_run)


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the resolved configuration that the command line stands for."""
    fastas = [str(STANDARD_INPUT) if text == "-" else text for text in options.fasta]
    config: dict[str, Any] = {"fasta": fastas if len(fastas) > 1 else fastas[0]}
    for _flag, key, described in schema_options():
        text = getattr(options, key)
        if text is None:
            continue
        part, _, below = key.partition(".")
        several = described.get("type") == "array"
        value = [part.strip() for part in text.split(",")] if several else text
        if below:
            config.setdefault(part, {})[below] = value
        else:
            config[part] = value
    return configuration.resolve(config)


def _run(options: argparse.Namespace) -> None:
    config = _config(options)
    # Only now: a Path takes an address for a path.
    fastas = input_files(config)
    root = results_folder(options.output)
    check_together(fastas)
    for fasta in fastas:
        configuration.check_readable(fasta)
    paths = Paths(root)
    with explained(paths.root), permissions_told():
        refuse_foreign(paths)
        if lies_in_results(root.resolve()) and not paths.kept():
            raise UserError(f"{root}: lies in a folder of results; give another place with -o")
    for path in (*fastas, locate(config["model"], config["checkpoints"])):
        if path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path}: lies in the folder of the results; give another with -o")
    once = [named(fasta) for fasta in fastas if not fasta.is_file()]
    if options.force and once:
        raise UserError(
            f"{once[0]}: can be read only once, and --force looks at the input before it "
            "removes anything; write it to a file first"
        )
    redrawn = why_redraw(paths, ReportOptions.of(config))
    if not (options.force or redrawn) and _finished_at_rest(paths, config):
        with stopping_on_signals():
            _add_exports(paths, config)
        return
    with stopping_on_signals(), working_in(paths):
        if not options.force and _finished(paths, config):
            _add_exports(paths, config, _redraw(paths, config))
            return
        # Here: who asks for help, or for what is there, need not wait for torch.
        from packedesm.pipeline import embed_fasta

        devices = options.devices
        embed_fasta(paths, config, threads=_cores(), force=options.force, devices=devices)
        clean_up(paths)
    arrays = ", ".join(read_record(paths.manifest)["arrays"])
    report = Path(options.output) / paths.report.name
    say(f"{options.output} holds {arrays} and index.parquet; open {report} in a browser")


def _finished_at_rest(paths: Paths, config: dict[str, Any]) -> bool:
    """Tell the same without a lock: the folder may be one that only others may write to."""
    try:
        return at_rest(paths) and _finished(paths, config)
    except UserError:
        if at_rest(paths):
            raise
        return False  # another process has just begun to start over: the lock decides


def _finished(paths: Paths, config: dict[str, Any]) -> bool:
    """Tell whether the folder holds the results of this very request.

    Raises
    ------
    UserError
        If it holds finished results of another one, or damaged ones.
    """
    before = finished_request(paths)
    if before is None:
        return False
    path = locate(config["model"], config["checkpoints"])
    heads = needs(config["outputs"])
    files = present_files(path, config["checkpoints"], heads) if path.exists() else []
    request = Request.of(config, files, before)
    if changes := request.differences(before, finished=True):
        raise UserError(
            f"{paths.root}: holds finished results of another request ({'; '.join(changes)}); give "
            "a new folder with -o, or --force to start over in this one"
        )
    if paths.work.exists():
        clean_up(paths)  # of an attempt that was stopped after its last file
    return True


def _cores() -> int:
    # What this process may use, which a cluster limits; macOS cannot tell.
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    )


def _redraw(paths: Paths, config: dict[str, Any]) -> list[str]:
    """Draw the report of finished results again if another is asked for; return that in words."""
    shown = ReportOptions.of(config)
    if not (why := why_redraw(paths, shown)):
        return []
    # Here: who asks for help, or for what is there, need not wait for what draws it.
    from packedesm.report.annotations import check_shown
    from packedesm.report.page import Before, draw_report

    check_shown(shown)
    drawn = draw_report(paths, shown, Before(*kept_of_steps(paths)))
    record_redrawn(paths, config, drawn)  # who is stopped before this draws it again
    return [f"drew a new report ({'; '.join(why)})"]


def _add_exports(paths: Paths, config: dict[str, Any], done: Sequence[str] = ()) -> None:
    """Make the exports that finished results shall have and have not, and say what was `done`."""
    made = add_missing(paths.root, config["exports"])
    said = [*done, *([f"exported {', '.join(made)}"] if made else [])]
    say(f"{paths.root}: {', '.join(said) or 'nothing to be done'}, these results are there")
