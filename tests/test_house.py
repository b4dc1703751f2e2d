"""The limits of the house: rooms, who imports whom, floors, and sizes of files and functions.

What an import is for does not matter for its direction: one inside a function or for types only is
an arrow as any other. Floors and circles are of what Python loads at once.
"""

from pathlib import Path

import pytest

from tests.house import (
    ROOMS,
    ROOT,
    House,
    circles,
    importers,
    longest_chain,
    wrong_imports,
)

SOURCE = Path(__file__).resolve().parents[1] / "src" / "packedesm"

MODULES_AT_ROOT = 14
FLOORS = 9
FILE_LINES = 350
BODY_LINES = 50
PARAMETERS = 7


@pytest.fixture(scope="module")
def house() -> House:
    return House(SOURCE)


def listed(offenders) -> str:
    return "".join(f"\n  {offender}" for offender in offenders)


def test_every_folder_is_a_room_of_the_table(house):
    assert house.rooms == set(ROOMS), "rooms are named in tests/house.py and CONTRIBUTING.md"


def test_few_modules_stand_at_the_root(house):
    modules = house.modules(ROOT)
    assert len(modules) <= MODULES_AT_ROOT, (
        f"{len(modules)} modules at the root, at most {MODULES_AT_ROOT}: which room is theirs?"
        f"{listed(modules)}"
    )


def test_rooms_import_one_way(house):
    wrong = wrong_imports(house)
    assert not wrong, f"{len(wrong)} imports against the table of rooms:{listed(wrong)}"


def test_only_the_edge_reads_the_configuration(house):
    commands = house.modules("commands")
    wrong = importers(house, "config", allowed=("pipeline", "notebook.request", *commands))
    assert not wrong, f"below commands and pipeline, options are typed:{listed(wrong)}"


def test_no_modules_import_in_a_circle(house):
    found = [" <-> ".join(circle) for circle in circles(house)]
    assert not found, f"modules that import one another:{listed(found)}"


def test_the_house_has_few_floors(house):
    assert not circles(house)
    chain = longest_chain(house)
    assert len(chain) <= FLOORS, f"{len(chain)} floors, at most {FLOORS}:{listed(chain)}"


def test_no_file_is_long(house):
    lengths = {name: len(text.splitlines()) for name, text in house.sources.items()}
    long = [f"{name}: {count}" for name, count in lengths.items() if count > FILE_LINES]
    assert not long, f"files of more than {FILE_LINES} lines:{listed(long)}"


def test_no_function_is_long(house):
    long = [f"{f}: {f.lines} lines" for f in house.functions() if f.lines > BODY_LINES]
    assert not long, f"functions of more than {BODY_LINES} lines:{listed(long)}"


def test_no_public_function_takes_many_parameters(house):
    many = [
        f"{f}: {f.parameters} parameters"
        for f in house.functions()
        if f.public and f.parameters > PARAMETERS
    ]
    assert not many, f"public functions of more than {PARAMETERS} parameters:{listed(many)}"


# The measures themselves, on small houses that break one rule each.


@pytest.fixture
def build(tmp_path):
    """Return a function that builds a house from the text of each module, by its dotted name."""

    def build(**texts: str) -> House:
        folder = tmp_path / "tiny"
        for name, text in {"__init__": "", **texts}.items():
            path = folder / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return House(folder)

    return build


def test_a_house_in_order_has_no_offenders(build):
    house = build(
        **{
            "files": "import json",
            "config": "from tiny import files",
            "cli": "from tiny import config\nfrom tiny.embedding.job import run",
            "sequences.fasta": "from tiny.files import write",
            "embedding.job": "import tiny.sequences.fasta\nfrom tiny.embedding import pack",
            "embedding.pack": "",
            "report.page": "from tiny.embedding.pack import Pack",
        }
    )
    assert wrong_imports(house) == []
    assert circles(house) == []
    assert importers(house, "config", allowed=("cli",)) == []
    assert longest_chain(house) == ["cli", "embedding.job", "sequences.fasta", "files"]
    assert house.rooms == {"sequences", "embedding", "report"}
    assert house.modules(ROOT) == ["__init__", "cli", "config", "files"]


@pytest.mark.parametrize(
    "statement",
    [
        "from tiny.embedding.job import run",
        "from tiny.embedding import job",
        "import tiny.embedding.job as job",
        "from ..embedding.job import run",
        "from ..embedding import job",
        "try:\n    import tiny.embedding.job\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_against_the_table_is_found_however_it_is_written(build, statement):
    house = build(**{"sequences.fasta": statement, "embedding.job": "def run(): pass"})
    (wrong,) = wrong_imports(house)
    assert wrong.startswith("sequences.fasta:")
    assert wrong.endswith("imports embedding.job: sequences may import no room")


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("def late():\n    from tiny.embedding.job import run", "in a function"),
        ("class A:\n    def late(self):\n        import tiny.embedding.job", "in a function"),
        ("if TYPE_CHECKING:\n    from tiny.embedding.job import run", "for types only"),
        ("if typing.TYPE_CHECKING:\n    from tiny.embedding import job", "for types only"),
    ],
)
def test_direction_counts_for_late_imports_and_for_types_but_floors_do_not(build, text, when):
    house = build(
        **{"packing.packer": text, "embedding.job": "from tiny.packing.packer import plan"}
    )
    (wrong,) = wrong_imports(house)
    assert f"imports embedding.job {when}" in wrong
    assert circles(house) == []
    assert longest_chain(house) == ["embedding.job", "packing.packer"]


def test_what_is_shared_at_the_root_imports_no_room_and_no_door(build):
    house = build(
        **{
            "files": "from tiny.esm2 import model",
            "paths": "import tiny.pipeline",
            "pipeline": "from tiny.esm2 import model",
            "esm2.model": "from tiny.cli import main",
            "cli": "import tiny.pipeline",
        }
    )
    assert wrong_imports(house) == [
        "esm2.model:1 imports cli: only the doors import a door",
        "files:1 imports esm2.model: what is shared at the root imports no room",
        "paths:1 imports pipeline: only the doors import a door",
    ]


def test_a_name_that_the_package_gives_comes_from_its_init(build):
    house = build(**{"results.reader": "from tiny import UserError"})
    assert wrong_imports(house) == [
        "results.reader:1 imports __init__: only the doors import a door"
    ]


def test_one_module_of_a_room_may_be_open_where_the_room_is_not(build):
    house = build(
        **{
            "report.page": "from tiny.embedding import pack\nfrom tiny.embedding import job",
            "embedding.pack": "",
            "embedding.job": "",
        }
    )
    (wrong,) = wrong_imports(house)
    assert wrong.startswith("report.page:2 imports embedding.job")


def test_a_folder_that_is_no_room_may_import_nothing(build):
    house = build(**{"attic.box": "import tiny.esm2.model", "esm2.model": ""})
    assert wrong_imports(house) == ["attic.box:1 imports esm2.model: attic may import no room"]
    assert house.rooms - set(ROOMS) == {"attic"}


def test_folders_inside_a_room_belong_to_it(build):
    house = build(
        **{
            "results.exports.hdf5": "from ..reader import open\nfrom ...files import write",
            "results.reader": "",
            "files": "",
        }
    )
    assert house.modules("results") == ["results.exports.hdf5", "results.reader"]
    assert [arrow.target for arrow in house.imports] == ["files", "results.reader"]
    assert wrong_imports(house) == []


def test_who_reads_the_configuration_is_found(build):
    house = build(
        **{
            "config": "",
            "cli": "import tiny.config",
            "packing.packer": "def f():\n    from tiny.config import pick",
        }
    )
    assert importers(house, "config", allowed=("cli",)) == [
        "packing.packer:2 imports config in a function"
    ]


def test_a_circle_is_found_also_through_the_init_of_a_room(build):
    house = build(**{"a": "import tiny.b", "b": "import tiny.c", "c": "import tiny.a", "d": ""})
    assert circles(house) == [["a", "b", "c"]]


def test_the_init_of_a_room_is_loaded_by_who_comes_from_outside(build):
    house = build(
        **{
            "packing.__init__": "from tiny.packing.packer import plan",
            "packing.packer": "from tiny.files import write",
            "packing.batch": "",
            "files": "",
            "pipeline": "import tiny.packing.batch",
        }
    )
    assert circles(house) == []
    chain = ["pipeline", "packing.__init__", "packing.packer", "files"]
    assert longest_chain(house) == chain


def test_lines_of_a_function_are_those_of_its_body_without_docstring(build):
    text = 'def long(\n    a,\n):\n    """Say.\n\n    More.\n    """\n' + "    a += 1\n" * 51
    house = build(one=text + "\n\ndef short():\n    return 1\n", two="def f(): ...")
    assert {f.name: f.lines for f in house.functions()} == {"long": 51, "short": 1, "f": 1}
    long = next(f for f in house.functions() if f.name == "long")
    assert str(long) == "one:1 long"


def test_parameters_are_counted_without_self_and_only_public_functions_are_bound(build):
    house = build(
        one=(
            "def all_kinds(a, /, b, *c, d, e=1, **f):\n"
            "    def inner(a, b): ...\n"
            "def _private(a): ...\n"
            "class Public:\n"
            "    def __init__(self, a, b): ...\n"
            "    @classmethod\n"
            "    def of(cls, a): ...\n"
            "    @staticmethod\n"
            "    def alone(a, b): ...\n"
            "    async def _hidden(self): ...\n"
            "class _Private:\n"
            "    def method(self, a): ...\n"
        )
    )
    found = {f.name: (f.parameters, f.public) for f in house.functions()}
    assert found == {
        "all_kinds": (6, True),
        "all_kinds.inner": (2, False),
        "_private": (1, False),
        "Public.__init__": (2, True),
        "Public.of": (1, True),
        "Public.alone": (2, True),
        "Public._hidden": (0, False),
        "_Private.method": (1, False),
    }
