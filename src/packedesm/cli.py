"""The companion command: what the workflow does, for one sample, without Snakemake."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from packedesm import config as configuration
from packedesm.doctor.command import add_doctor
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import Fault, UserError, permissions_told, printable
from packedesm.esm2.input_files import present_files
from packedesm.esm2.registry import MODELS, locate
from packedesm.files import explained, read_record
from packedesm.log import LineFormatter, expect_end
from packedesm.options import ReportOptions
from packedesm.outputs import needs
from packedesm.paths import STANDARD_INPUT, Paths, named
from packedesm.results import neighbours
from packedesm.results.arguments import Parser
from packedesm.results.exports import command as exporting
from packedesm.results.folder import at_rest, clean_up, finished_request, refuse_foreign, working_in
from packedesm.results.inputs import check_together
from packedesm.results.redrawing import kept_of_steps, record_redrawn, why_redraw
from packedesm.results.request import Request, input_files
from packedesm.results.streams import answer
from packedesm.results.variants import add_variants

# Options of the workflow that the command replaces by its own arguments.
_NOT_OPTIONS = ("fasta", "results")
# Those that decide whether a run works on a machine.
_OF_DOCTOR = ("model", "checkpoints", "device")


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
        taken = _flushed()
        raise SystemExit(end.code or int(not taken)) from None
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.raiseExceptions = False  # a log that nobody can read is no reason for a traceback
    status = _run(options)
    _flushed()
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        with permissions_told():
            options.run(options)
    except (UserError, Fault) as error:
        _say(f"packedesm: {error}", sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except SystemExit:  # a signal stopped it
        expect_end()
        raise
    except KeyboardInterrupt:
        expect_end()
        said = "packedesm: interrupted; what is finished is kept, the same command goes on"
        _say(said, sys.stderr)
        return 130
    except Exception as error:
        logging.exception("this is a fault of packedesm or of the machine, not of the input")
        _say(printable(f"packedesm: {type(error).__name__}: {error}"), sys.stderr)
        return 1
    return 0


def _say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to a stream, by default standard output, that may be full or closed."""
    with suppress(OSError):
        print(text, file=stream)


def _flushed() -> bool:
    """Write out what standard output and error still hold; tell whether they took it."""
    taken = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            taken = False
            # Python would try again at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return taken


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="packedesm", description="ESM-2 embeddings of proteins, packed: without padding."
    )
    parser.add_argument("--version", action="version", version=metadata.version("packedesm"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    embed = commands.add_parser("embed", help="embed the proteins of FASTA files")
    embed.add_argument(
        "fasta",
        nargs="+",
        help="FASTA files, together one sample: plain, gzip or bgzip; - is standard input",
    )
    embed.add_argument(
        "-o",
        "--output",
        type=_folder,
        required=True,
        help="folder for the results: new, empty, or of the same run, which goes on",
    )
    embed.add_argument(
        "--force",
        action="store_true",
        help="start over in a folder that holds results or an unfinished run",
    )
    embed.add_argument(
        "--devices",
        help="which devices to use, with one process on each: GPUs by number or UUID, such as 0,2, "
        "or cpu. Default: every GPU, where device allows it.",
    )
    for flag, key, described in _schema_options():
        embed.add_argument(flag, dest=key, metavar="VALUE", help=_help(described))
    embed.set_defaults(run=_embed)

    fetch = commands.add_parser("fetch", help="download a model and check it")
    fetch.add_argument("model", help="a name that `packedesm models` lists")
    fetch.add_argument("--checkpoints", default="auto", help="folder; default: fair-esm's own")
    fetch.set_defaults(run=_fetch)

    export = commands.add_parser("export", help="write finished results as other tools read them")
    exporting.add_options(export, _folder)
    export.set_defaults(run=_export)

    neighbours.add_command(commands)
    options = [(f, key, _help(d)) for f, key, d in _schema_options() if key in _OF_DOCTOR]
    add_doctor(commands, options, _folder, _doctor)
    add_variants(commands)
    commands.add_parser("models", help="list the models by name").set_defaults(run=_models)
    return parser


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return text


def _schema_options() -> list[tuple[str, str, dict[str, Any]]]:
    """Return flag, dotted key and schema of each option that the configuration knows."""
    options = []
    for key, described in configuration.schema()["properties"].items():
        for below, inner in described.get("properties", {}).items():
            options.append((f"--{key}-{below}".replace("_", "-"), f"{key}.{below}", inner))
        if key not in _NOT_OPTIONS and "properties" not in described:
            options.append((f"--{key}".replace("_", "-"), key, described))
    return options


def _help(described: dict[str, Any]) -> str:
    default = described["default"]
    if isinstance(default, list):
        default = ",".join(default) or "none"
    text = described["description"].replace("%", "%%")
    return f"{text} Default: {str(default).lower() if isinstance(default, bool) else default}."


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the resolved configuration that the command line stands for."""
    fastas = [str(STANDARD_INPUT) if text == "-" else text for text in options.fasta]
    config: dict[str, Any] = {"fasta": fastas if len(fastas) > 1 else fastas[0]}
    for _flag, key, described in _schema_options():
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


def _embed(options: argparse.Namespace) -> None:
    config = _config(options)
    # Only now: a Path takes an address for a path.
    fastas = input_files(config)
    root = _results_folder(options.output)
    check_together(fastas)
    for fasta in fastas:
        configuration.check_readable(fasta)
    paths = Paths(root)
    with explained(paths.root), permissions_told():
        refuse_foreign(paths)
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
    _say(f"{options.output} holds {arrays} and index.parquet; open {report} in a browser")


def _results_folder(text: str) -> Path:
    """Return the folder that was given as -o as an absolute path."""
    configuration.check_path("-o", text)
    return Path(configuration.expanded("-o", text)).absolute()


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


def _export(options: argparse.Namespace) -> None:
    place = _results_folder(options.output) if options.output else None
    with stopping_on_signals():
        _say(exporting.run(options, place))


def _redraw(paths: Paths, config: dict[str, Any]) -> list[str]:
    """Draw the report of finished results again if another is asked for; return that in words."""
    shown = ReportOptions.of(config)
    if not (why := why_redraw(paths, shown)):
        return []
    # Here: who asks for help, or for what is there, need not wait for matplotlib.
    from packedesm.report.annotations import check_shown
    from packedesm.report.page import Before, draw_report

    check_shown(shown)
    drawn = draw_report(paths, shown, Before(*kept_of_steps(paths)))
    record_redrawn(paths, config, drawn)  # who is stopped before this draws it again
    return [f"drew a new report ({'; '.join(why)})"]


def _add_exports(paths: Paths, config: dict[str, Any], done: Sequence[str] = ()) -> None:
    """Make the exports that finished results shall have and have not, and say what was `done`."""
    made = exporting.add_missing(paths.root, config["exports"])
    said = [*done, *([f"exported {', '.join(made)}"] if made else [])]
    _say(f"{paths.root}: {', '.join(said) or 'nothing to be done'}, these results are there")


def _fetch(options: argparse.Namespace) -> None:
    from packedesm.esm2.download import fetch, fetch_regression

    configuration.check_path("--checkpoints", options.checkpoints)
    folder = configuration.expanded("--checkpoints", options.checkpoints)
    path = fetch(options.model, folder)
    fetch_regression(options.model, folder)
    answer(str(path))


def _doctor(options: argparse.Namespace) -> None:
    from packedesm.doctor.examine import Run, examine
    from packedesm.doctor.findings import as_json, screen, works

    given = {key: value for key in _OF_DOCTOR if (value := getattr(options, key)) is not None}
    config = configuration.resolve({"fasta": "-", **given})
    output = _results_folder(options.output)
    model, checkpoints, device = (config[key] for key in _OF_DOCTOR)
    findings = examine(Run(output, model, checkpoints, device, options.digests))
    answer(as_json(findings) if options.json else screen(findings))
    if not works(findings):
        raise Fault("a run would not work here; what is amiss is above, with what to do")


def _models(_options: argparse.Namespace) -> None:
    lines = [f"{'name':<24}{'layers':>8}{'width':>8}{'heads':>8}{'parameters':>14}"]
    for name, geometry in MODELS.items():
        row = (geometry.layers, geometry.width, geometry.heads, geometry.parameters)
        lines.append(f"{name:<24}{row[0]:>8}{row[1]:>8}{row[2]:>8}{row[3] / 1e6:>12.1f} M")
    answer("\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
