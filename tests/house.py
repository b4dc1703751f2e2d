"""The house as its source shows it: rooms, who imports whom, floors and sizes.

Only read, never imported: an import that hides in a function or behind TYPE_CHECKING counts too.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Rooms in the order of the data's way, and what each may import besides itself and what is shared
# at the root: rooms, single modules of a room, or a door.
ROOMS = {
    "sequences": (),
    "packing": ("sequences",),
    "esm2": (),
    "device": ("esm2",),
    "reference": ("sequences", "esm2"),
    # Of the reference only what tells of it: it loads no fair-esm.
    "embedding": (
        *("sequences", "packing", "esm2", "device"),
        *("reference.vectors", "reference.comparison"),
    ),
    # Of embedding only what tells of finished packs and jobs: it loads no torch. Of the model only
    # what its files are called.
    "results": ("sequences", "esm2.model_files", "embedding.record", "reference.vectors"),
    "report": (
        *("sequences", "packing", "esm2", "embedding.pack", "embedding.record"),
        *("reference.vectors", "reference.comparison"),
    ),
    # Of the reference only how close is right.
    "doctor": ("esm2", "device", "reference.comparison"),
    # In memory what embedding and results do with files, for programs.
    "notebook": (
        *("sequences", "packing", "esm2", "device", "embedding", "reference"),
        "results.reader",
    ),
    # What a terminal asks for; all else of a run is behind `pipeline`, which loads torch.
    "commands": ("esm2", "embedding.signals", "results", "doctor", "pipeline"),
}
# Modules at the root that lead into rooms. All others there are shared: they import no room.
DOORS = ("__init__", "cli", "pipeline", "cluster")

ROOT = ""  # in place of a room
INIT = "__init__"
# When an import happens.
AT_ONCE, IN_FUNCTION, TYPING = "at once", "in a function", "for types only"


@dataclass(frozen=True, order=True)
class Import:
    """One module that imports another; names are dotted and begin below the package."""

    source: str
    target: str
    when: str
    line: int


@dataclass(frozen=True)
class Function:
    """One function or method, with what there are limits for."""

    module: str
    name: str  # with the classes and functions that it stands in
    line: int
    lines: int  # of the body, without its docstring
    parameters: int  # without self and cls
    public: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.name}"


class House:
    """A package below `folder`, read once.

    Attributes
    ----------
    sources : dict
        Text of each module by its name: ``cli``, ``packing.packer``, ``packing.__init__``.
    """

    def __init__(self, folder: Path) -> None:
        self.package = folder.name
        files = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.py")}
        self.sources = {".".join(name.parts): files[name].read_text() for name in sorted(files)}
        self._trees = {name: ast.parse(text) for name, text in self.sources.items()}

    def modules(self, room: str) -> list[str]:
        """Return the names of a room's modules, or of those at the root."""
        return [name for name in self.sources if room_of(name) == room]

    @cached_property
    def rooms(self) -> set[str]:
        """Names of all folders that hold modules."""
        return {room_of(name) for name in self.sources} - {ROOT}

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one module of the package by another, sorted."""
        found = set()
        for source, tree in self._trees.items():
            for node, when in _imports(tree.body, AT_ONCE):
                for target in self._targets(source, node):
                    found.add(Import(source, target, when, node.lineno))
        return sorted(arrow for arrow in found if arrow.source != arrow.target)

    def functions(self) -> Iterator[Function]:
        """Yield all functions and methods, also those inside others."""
        for module, tree in self._trees.items():
            yield from _functions(module, tree.body)

    def loads(self) -> dict[str, set[str]]:
        """Return which modules Python loads for each while that is imported.

        Who imports a module from another folder runs that folder's ``__init__`` first.
        """
        loaded = {name: set() for name in self.sources}
        for arrow in self.imports:
            if arrow.when == AT_ONCE:
                loaded[arrow.source].add(arrow.target)
                room = room_of(arrow.target)
                init = f"{room}.{INIT}"
                if room not in (ROOT, room_of(arrow.source)) and init in self.sources:
                    loaded[arrow.source].add(init)
        return loaded

    def _targets(self, source: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            base = node.module.split(".") if node.module else []
            if node.level:
                folder = [self.package, *source.split(".")[:-1]]
                base = folder[: len(folder) - node.level + 1] + base
            names = [[*base, alias.name] for alias in node.names]
        for package, *parts in names:
            if package == self.package:
                yield self._module(parts)

    def _module(self, parts: list[str]) -> str:
        """Return the module that a dotted name leads to; what follows is a name inside it."""
        for end in range(len(parts), -1, -1):
            for name in (parts[:end], [*parts[:end], INIT]):
                if ".".join(name) in self.sources:
                    return ".".join(name)
        return INIT


def room_of(module: str) -> str:
    """Return the room of a module; folders inside a room belong to it."""
    room, dot, _ = module.partition(".")
    return room if dot else ROOT


def wrong_imports(house: House) -> list[str]:
    """Return every import that goes against `ROOMS`."""
    wrong = []
    for arrow in house.imports:
        source, target = room_of(arrow.source), room_of(arrow.target)
        if source == target and source != ROOT:
            continue
        if target == ROOT:
            # A room's own names are found by the package's `exports`.
            names = arrow.target == INIT and arrow.source.endswith(f".{INIT}")
            allowed = arrow.target not in DOORS or arrow.source in DOORS or names
            allowed = allowed or arrow.target in ROOMS.get(source, ())
            rule = "only the doors import a door"
        elif source == ROOT:
            allowed = arrow.source in DOORS
            rule = "what is shared at the root imports no room"
        else:
            may = ROOMS.get(source, ())
            allowed = target in may or arrow.target in may
            rule = f"{source} may import {', '.join(may) or 'no room'}"
        if not allowed:
            wrong.append(f"{_arrow(arrow)}: {rule}")
    return wrong


def importers(house: House, module: str, allowed: tuple[str, ...]) -> list[str]:
    """Return every import of `module` by others than those that are `allowed` to."""
    return [
        _arrow(arrow)
        for arrow in house.imports
        if arrow.target == module and arrow.source not in allowed
    ]


def circles(house: House) -> list[list[str]]:
    """Return the groups of modules that load one another, each group sorted."""
    loads = house.loads()
    reached = {name: _reached(loads, name) for name in loads}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in reached
    }
    return sorted(list(group) for group in groups if group)


def longest_chain(house: House) -> list[str]:
    """Return the longest chain of modules of which each loads the next.

    Its length is the number of floors of the house. There must be no circles.
    """
    loads = house.loads()
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            below = max(map(chain, sorted(loads[name])), key=len, default=[])
            chains[name] = [name, *below]
        return chains[name]

    return max(map(chain, house.sources), key=len, default=[])


def _arrow(arrow: Import) -> str:
    when = "" if arrow.when == AT_ONCE else f" {arrow.when}"
    return f"{arrow.source}:{arrow.line} imports {arrow.target}{when}"


def _reached(loads: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = loads[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _imports(nodes: list[ast.AST], when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node.body, IN_FUNCTION)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(node.body, TYPING)
            yield from _imports(node.orelse, when)
        else:
            yield from _imports(list(ast.iter_child_nodes(node)), when)


def _functions(
    module: str, nodes: list[ast.AST], inside: tuple[ast.AST, ...] = ()
) -> Iterator[Function]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _function(module, node, inside)
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        outer = (*inside, node) if named else inside
        yield from _functions(module, list(ast.iter_child_nodes(node)), outer)


def _function(
    module: str, node: ast.FunctionDef | ast.AsyncFunctionDef, inside: tuple[ast.AST, ...]
) -> Function:
    names = [*(outer.name for outer in inside), node.name]
    in_class = bool(inside) and isinstance(inside[-1], ast.ClassDef)
    static = any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
    taken = node.args
    parameters = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
    count = len(parameters) + bool(taken.vararg) + bool(taken.kwarg)
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return Function(
        module,
        ".".join(names),
        node.lineno,
        lines=body[-1].end_lineno - body[0].lineno + 1 if body else 0,
        parameters=count - (in_class and not static),
        public=all(isinstance(outer, ast.ClassDef) for outer in inside)
        and all(not name.startswith("_") or name.endswith("__") for name in names),
    )
