"""Names that try to break out of shells, paths, pages and terminals, from one end to the other."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

import packedesm
from packedesm.cli import main
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.files import read_json
from tests.workflow import refusal, snakemake, write_config

SHELL = 'it\'s "quoted" $(touch pwned) `touch pwned` ;touch pwned; %j \\ *?[!a] # ~ é 🧬'
HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
# As the bytes after ">"; the id ends at the first space or tab.
HEADERS = [
    b"plain",
    b"../../../etc/passwd ../..",
    b"'\"`$(touch${IFS}pwned);|& {sample} {{x}} %s %(x)s",
    HTML.replace(" ", "/").encode() + b" " + HTML.encode(),
    b"\x1b[31mred\x1b[2J\x07 \x1b]0;title\x07",
    b"\x9b31m\x80 \xff",  # not UTF-8: C1 controls as Latin-1
    "🧬\u202egnp.exe\u2028x\u0085y\u200b".encode(),
    b"nul\0byte",
    b"=cmd|'/c'!A1\xc2\xa0b",
    b"x" * 10_000 + b" " + b"y" * 10_000,
    b"\xef\xbb\xbfmark",
]
IDS = [header.replace(b"\t", b" ").partition(b" ")[0] for header in HEADERS]


def write_fasta(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sequences = [b"MKVLA" + b"ACDEFGHIKL"[: i % 10] * (i + 1) for i in range(len(HEADERS))]
    pairs = zip(HEADERS, sequences, strict=True)
    path.write_bytes(b"".join(b">%s\n%s\n" % pair for pair in pairs))
    return path


def ids_in_bytes(folder: Path) -> list[bytes]:
    """Return the ids of finished results as they stood in the input."""
    results = packedesm.open(folder)
    latin1 = results.index["flags"].str.contains("header_latin1")
    encodings = ["latin-1" if flag else "utf-8" for flag in latin1]
    return [i.encode(encoding) for i, encoding in zip(results.ids, encodings, strict=True)]


class Tags(HTMLParser):
    """Collects what a browser would run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def handle_starttag(self, tag, attributes):
        events = [name for name, _ in attributes if name.startswith("on") or name == "src"]
        if tag in ("script", "img", "iframe", "object") or events:
            self.active.append(f"{tag} {events}")


def check_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.active == []
    assert not set(text) & {"\x1b", "\x07", "\0", "\x9b", "\u202e"}


def check_lines(text: str) -> None:
    """Nothing in the text commands a terminal."""
    odd = [line for line in text.split("\n") if not line.replace("\t", "").isprintable()]
    assert odd == []


def check_nothing_ran(folder: Path) -> None:
    assert not list(folder.rglob("*pwned")) + list(Path.cwd().glob("pwned"))


def embed(fasta: Path, out: Path, *options: str) -> int:
    checkpoints = str(out.parent / "checkpoints")
    return main(["embed", str(fasta), "-o", str(out), "--checkpoints", checkpoints, *options])


def test_the_command_gives_every_id_back_byte_for_byte(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fasta = write_fasta(tmp_path / f"in {SHELL}" / f"{SHELL}<b>{{x}}.fasta")
    out = tmp_path / f"out {SHELL}" / "<i>results"
    assert embed(fasta, out, "--verify-sequences", str(len(HEADERS))) == 0
    assert ids_in_bytes(out) == IDS
    assert read_json(out / "manifest.json")["config"]["fasta"] == str(fasta)
    check_page(out / "report.html")
    for text in capfd.readouterr():
        check_lines(text)
    check_nothing_ran(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"in {SHELL}", f"out {SHELL}"}


@pytest.mark.parametrize(
    "name",
    ["a\nb.fasta", "a\x1b[31m.fasta", "a\u202eb.fasta", "a\udcffb.fasta", "x" * 10_000, "a\0b"],
)
@pytest.mark.parametrize("place", ["fasta", "output", "model", "checkpoints"])
def test_a_path_that_would_not_be_shown_as_it_is_gives_one_line(tmp_path, capsys, name, place):
    good = tmp_path / "good.fasta"
    good.write_text(">a\nMKV\n")
    if place == "fasta" and "\0" not in name and len(name) < 256:
        (tmp_path / name).write_text(">a\nMKV\n")
    paths = {"fasta": good, "output": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    paths[place] = tmp_path / name
    arguments = ["embed", str(paths["fasta"]), "-o", str(paths["output"])]
    arguments += ["--checkpoints", str(paths["checkpoints"])]
    if place == "model":
        arguments += ["--model", str(paths["model"])]
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("packedesm: ")
    assert line.isprintable()
    assert len(line) < 400
    assert sorted(tmp_path.iterdir()) == before


def test_the_folder_of_a_download_is_checked_too(capsys):
    assert main(["fetch", "esm2_t6_8M_UR50D", "--checkpoints", "/none/\x1b[31m"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--checkpoints" in line and line.isprintable()


def test_an_odd_option_does_not_reach_the_terminal(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["embed", "a.fasta", "-o", "out", "--\x1b[31m"])
    assert caught.value.code == 2
    check_lines(capsys.readouterr().err)


def test_a_fault_in_a_hostile_file_is_one_printable_line(tmp_path, capsys):
    fasta = tmp_path / f"{SHELL}.fasta"
    fasta.write_bytes(b">\x1b[31m\xe2\x80\xae" + b"x" * 10_000 + b"\nMK1\n")
    assert embed(fasta, tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("packed")]
    assert line.isprintable()
    assert len(line) < 500
    assert "record 1" in line and "'1' at residue 3" in line


# Odd in every way at once, and with 200 bytes as long as a name may be.
SAMPLE = "-rf two words (1); touch pwned & #|&lt;b&gt;~*?[!] 🧬 日本 a=b:c^@+"
SAMPLE += "".join(f"é{k:02}" for k in range(32)) + "z"
assert len(SAMPLE.encode()) == 200


@pytest.mark.slow
def test_the_workflow_gives_every_id_back_byte_for_byte(tmp_path):
    folder = tmp_path / "run"
    model = tmp_path / f"models {SHELL}" / f"{SHELL}.pt"
    model.parent.mkdir()
    write_random_checkpoint(model, Geometry(layers=1, width=32, heads=2), seed=1)
    fasta = write_fasta(tmp_path / f"in {SHELL}" / f"{SHELL}<B>.fasta")
    results = "res ults'$(touch pwned)`touch pwned`;🧬"
    write_config(
        folder,
        fasta={SAMPLE: str(fasta)},
        results=results,
        model=str(model),
        shards=1,
        verify={"sequences": len(HEADERS)},
    )
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    check_lines(run.stdout)
    assert ids_in_bytes(folder / results / SAMPLE) == IDS
    check_page(folder / results / SAMPLE / "report.html")
    for log in (folder / results / ".logs" / SAMPLE).glob("*.log"):
        check_lines(log.read_text())
    check_nothing_ran(tmp_path)
    assert {path.name for path in (folder / results).iterdir()} == {SAMPLE, ".logs", ".work"}
    assert "Nothing to be done" in snakemake(folder).stdout


BAD_NAMES = [
    ({"fasta": {"../up": "good.fasta"}}, "cannot name a folder"),
    ({"fasta": {"$(touch pwned)": "good.fasta"}}, "cannot name a folder"),
    ({"fasta": {"<results>": "good.fasta"}}, "cannot name a folder"),
    ({"fasta": {"x" * 10_000: "good.fasta"}}, "at most 200"),
    ({"fasta": {"a\x1b[31m\n": "good.fasta"}}, "cannot name a folder"),
    ({"fasta": {2024: "good.fasta"}}, "put it in quotes"),
    ({"fasta": "a\x1b[31m.fasta"}, "cannot be seen"),
    ({"fasta": "x" * 10_000}, "too long"),
    ({"results": "out\nput"}, "cannot be seen"),
    ({"results": "{sample}"}, "{, which Snakemake replaces"),
    ({"results": "<i>"}, "<i>, which Snakemake replaces"),
    ({"fasta": {"a": "<results>.fasta"}}, "<results>, which Snakemake replaces"),
    ({"fasta": {"a": "{sample}.fasta"}}, "{, which Snakemake replaces"),
    ({"model": "\x1b[31m"}, "cannot be seen"),
    ({"mo\x1b[31mdel": "x"}, "unknown config key"),
    ({"dtype": "\x1b[31m" + "x" * 10_000}, "dtype"),
]


@pytest.fixture
def folder_of_names(tmp_path, monkeypatch):
    """A folder with every file that BAD_NAMES asks for, so that none is refused as missing."""
    for name in ("good.fasta", "<results>.fasta", "{sample}.fasta"):
        (tmp_path / name).write_text(">a\nMKV\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("config", "words"), BAD_NAMES)
def test_bad_names_are_refused_in_one_printable_line(folder_of_names, config, words):
    line = refusal({"fasta": "good.fasta", **config})
    assert words in line
    assert line.isprintable()
    assert len(line) < 500
    check_nothing_ran(folder_of_names)
    assert not (folder_of_names / "results").exists()


# One for each of the two checks that come to it, with braces and with what a terminal obeys.
@pytest.mark.parametrize(("config", "words"), [BAD_NAMES[12], BAD_NAMES[15]])
@pytest.mark.slow
def test_the_workflow_refuses_names_in_one_printable_line(folder_of_names, config, words):
    write_config(folder_of_names, **{"fasta": "good.fasta", **config})
    run = snakemake(folder_of_names)
    assert run.returncode != 0
    check_lines(run.stdout)
    (line,) = [line for line in run.stdout.splitlines() if words in line]
    assert len(line) < 500
    assert "Traceback" not in run.stdout
    check_nothing_ran(folder_of_names)
    assert not (folder_of_names / "results").exists()
