"""Draw docs/architecture.svg from the code: rooms, their modules, and who imports whom.

`make architecture` runs it; a test checks that the drawing is that of the code.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.house import DOORS, ROOMS, ROOT, House, room_of

CHECKOUT = Path(__file__).resolve().parents[1]
PICTURE = CHECKOUT / "docs" / "architecture.svg"

# What stands between the rooms, and what each does with it.
START = "FASTA"
GIVES = {
    "sequences": "shards",
    "packing": "packs",
    "reference": "what some vectors should be",
    "embedding": "vectors of a shard",
    "results": "results",
    "report": "report",
}
# What those that serve put into the job.
LENDS = {
    "esm2": "model",
    "device": "plan",
    "doctor": "advice",
    "notebook": "arrays",
    "commands": "requests",
}
DOES = {
    "sequences": "reads and checks records, cuts them into shards",
    "packing": "plans packs that fill the token budget, collates them",
    "esm2": "the model: geometry, weights, attention",
    "device": "what it runs on, and what auto means there",
    "reference": "fair-esm on a sample, and how far a vector is from it",
    "embedding": "one job: packs through the model, committed as they are done",
    "results": "merges shards in input order, reads them back",
    "report": "checks against fair-esm, adds up, draws, tells",
    "doctor": "whether a run would work on this machine, and what to do if not",
    "notebook": "the same in memory: embed, load_model, pack",
    "commands": "what a terminal can ask for, and what it is told",
}
# Mid-tones, which stand out from white and from black.
COLOURS = {
    "sequences": "#2f81c7",
    "packing": "#2a9d6e",
    "esm2": "#bf7d1e",
    "device": "#8a6bd1",
    "reference": "#6f8f3a",
    "embedding": "#d04f5f",
    "results": "#1499a8",
    "report": "#c25fa4",
    "doctor": "#6b7d3a",
    "notebook": "#5b7fa6",
    "commands": "#a6702e",
}

WIDTH = 1080
EDGE = 24  # of the picture
WAY = 112  # x of the data's way
LEFT, RIGHT = 214, 852  # of the rooms
LANES = RIGHT + 22  # x of the first import arrow's upright
LANE = 19
GAP = 54  # between rooms, for what stands there
CHIP, CHIP_GAP, LETTER = 25, 7, 7.3  # height, space, width of a letter
HEAD = 42  # of a room, above its modules

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  .panel { fill: #ffffff; stroke: #d0d7de; }
  .room { fill: #f6f8fa; stroke: #d0d7de; }
  .chip { fill: #ffffff; stroke: #d0d7de; }
  .module { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
  .module, .datum, .heading { fill: #1f2328; }
  .heading { font-size: 19px; font-weight: 600; }
  .name { font-size: 16px; font-weight: 600; }
  .note { font-size: 13px; fill: #59636e; }
  .way { fill: none; stroke: #8c959f; stroke-width: 3; }
  .lent { fill: none; stroke: #8c959f; stroke-width: 2; stroke-dasharray: 5 4; }
  .tip { fill: #8c959f; }
  .stop { fill: #ffffff; stroke: #8c959f; stroke-width: 2; }
  .datum { font-weight: 600; text-anchor: middle; }
  .arrow { fill: none; stroke-width: 2; }
  .count { font-size: 11.5px; font-weight: 600; text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .panel, .stop { fill: #0d1117; }
    .panel, .room, .chip { stroke: #3d444d; }
    .room { fill: #151b23; }
    .chip { fill: #212830; }
    .module, .datum, .heading { fill: #f0f6fc; }
    .note { fill: #9198a1; }
  }
"""


class Box(NamedTuple):
    """Where a room stands."""

    top: int
    bottom: int

    @property
    def middle(self) -> int:
        """Its height half way down."""
        return (self.top + self.bottom) // 2


class Arrow(NamedTuple):
    """All imports of one room by another."""

    source: str
    target: str
    count: int


def drawing(house: House) -> str:
    """Return the picture of a house, SVG, the same for the same code."""
    top = EDGE + 92
    boxes = {}
    for room in ROOMS:
        boxes[room] = Box(top, top + _height(house.modules(room), RIGHT - LEFT))
        top = boxes[room].bottom + GAP
    strip = Box(top + 26, top + 26 + _strip_height(house))
    arrows = _arrows(house)
    height = strip.bottom + EDGE
    body = [
        f'<rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14"/>',
        *_heading(house, arrows),
        *_way(boxes),
        *_import_arrows(boxes, arrows),
        *(line for room in ROOMS for line in _room(house, room, boxes[room])),
        *_root(house, strip),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" role="img">',
            "<title>The way of the data through the rooms of packedesm, and their imports</title>",
            f"<style>{STYLE}</style>",
            *body,
            "</svg>\n",
        ]
    )


def _heading(house: House, arrows: list[Arrow]) -> list[str]:
    modules = sum(not name.endswith("__init__") for name in house.sources)
    order = list(ROOMS)
    upwards = all(order.index(arrow.target) < order.index(arrow.source) for arrow in arrows)
    note = (
        f"{modules} modules. Left: the way of the data. Right: who imports whom, and how often;"
        f" {'they all lead' if upwards else 'not all lead'} upwards."
    )
    return [
        _text(EDGE + 4, EDGE + 22, "src/packedesm, room by room", "heading"),
        _text(EDGE + 4, EDGE + 45, note, "note"),
    ]


def _way(boxes: dict[str, Box]) -> list[str]:
    """Return the data's way: into a room, out of it, to the next, past those that only serve."""
    lines = []
    datum, stop = START, EDGE + 82
    for room, given in GIVES.items():
        box = boxes[room]
        enter = box.top + min(24, (box.bottom - box.top) // 3)
        leave = box.bottom - min(24, (box.bottom - box.top) // 3)
        following = box.bottom + GAP // 2 + 2
        lines += [
            f'<path class="way" d="M{WAY} {stop} V{enter - 12} Q{WAY} {enter} {WAY + 12} {enter}'
            f' H{LEFT - 10}"/>',
            f'<path class="tip" d="M{LEFT - 1} {enter} l-11 -6 v12 z"/>',
            f'<path class="way" d="M{LEFT} {leave} H{WAY + 12} Q{WAY} {leave} {WAY} {leave + 12}'
            f' V{following - 22}"/>',
            f'<path class="tip" d="M{WAY} {following - 15} l-6 -11 h12 z"/>',
            *_stop(stop, datum),
        ]
        datum, stop = given, following
    for room, lent in LENDS.items():
        middle = boxes[room].middle
        lines += [
            f'<path class="lent" d="M{LEFT} {middle} H{WAY + 14}"/>',
            f'<path class="tip" d="M{WAY + 3} {middle} l11 -6 v12 z"/>',
            _text(WAY + 30, middle - 8, lent, "note"),
        ]
    return [*lines, *_stop(stop, datum)]


def _stop(middle: int, datum: str) -> list[str]:
    width = round(len(datum) * 7.9) + 28
    return [
        f'<rect class="stop" x="{WAY - width // 2}" y="{middle - 15}" width="{width}" height="30"'
        ' rx="15"/>',
        _text(WAY, middle + 5, datum, "datum"),
    ]


def _room(house: House, room: str, box: Box) -> list[str]:
    colour = COLOURS[room]
    height = box.bottom - box.top
    return [
        f'<rect class="room" x="{LEFT}" y="{box.top}" width="{RIGHT - LEFT}" height="{height}"'
        ' rx="9"/>',
        f'<rect x="{LEFT}" y="{box.top + 9}" width="5" height="{height - 18}" fill="{colour}"/>',
        f'<text class="name" x="{LEFT + 20}" y="{box.top + 27}" fill="{colour}">{room}/'
        f'<tspan class="note" dx="12" font-weight="400">{DOES[room]}</tspan></text>',
        *_chips(_inside(house.modules(room)), LEFT + 20, box.top + HEAD, RIGHT - LEFT - 34),
    ]


def _root(house: House, strip: Box) -> list[str]:
    doors, shared = _groups(house)
    used = sum(room_of(arrow.target) == ROOT != room_of(arrow.source) for arrow in _pairs(house))
    opened = sum(room_of(arrow.source) == ROOT != room_of(arrow.target) for arrow in _pairs(house))
    width = WIDTH - 2 * EDGE
    split = EDGE + width // 3
    return [
        f'<rect class="room" x="{EDGE}" y="{strip.top}" width="{width}"'
        f' height="{strip.bottom - strip.top}" rx="9"/>',
        f'<text class="name heading" x="{EDGE + 16}" y="{strip.top + 27}">the root'
        f'<tspan class="note" dx="12" font-weight="400">doors: {opened} imports of rooms'
        "</tspan></text>",
        _text(split + 16, strip.top + 27, f"shared: imported {used} times by rooms", "note"),
        *_chips(doors, EDGE + 16, strip.top + HEAD, split - EDGE - 24),
        *_chips(shared, split + 16, strip.top + HEAD, EDGE + width - split - 30),
    ]


def _import_arrows(boxes: dict[str, Box], arrows: list[Arrow]) -> list[str]:
    """Return the arrows at the right: short ones inside, so that few cross."""
    order = list(ROOMS)

    def span(arrow: Arrow) -> tuple[int, int]:
        ends = sorted((order.index(arrow.source), order.index(arrow.target)))
        return ends[1] - ends[0], ends[0]

    arrows = sorted(arrows, key=span)
    starts, ends = _ports(boxes, arrows)
    taken: list[list[tuple[int, int]]] = []  # uprights in each lane, from y to y
    lines, counts = [], []
    for arrow in arrows:
        start, end = starts[arrow], ends[arrow]
        low, high = min(start, end) - 8, max(start, end) + 8
        free = (i for i, lane in enumerate(taken) if all(high < a or b < low for a, b in lane))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        x = LANES + lane * LANE
        lines += _import_arrow(COLOURS[arrow.target], start, end, x)
        counts += _count(arrow, (start + end) // 2, x)
    return lines + counts


def _import_arrow(colour: str, start: int, end: int, x: int) -> list[str]:
    turn = 8 if start > end else -8
    return [
        f'<path class="arrow" stroke="{colour}" d="M{RIGHT} {start} H{x - 8}'
        f" Q{x} {start} {x} {start - turn} V{end + turn} Q{x} {end} {x - 8} {end}"
        f' H{RIGHT + 9}"/>',
        f'<path fill="{colour}" d="M{RIGHT + 1} {end} l10 -5 v10 z"/>',
    ]


def _count(arrow: Arrow, middle: int, x: int) -> list[str]:
    colour = COLOURS[arrow.target]
    width = 10 + 8 * len(str(arrow.count))
    return [
        f'<rect class="panel" x="{x - width // 2}" y="{middle - 9}" width="{width}" height="18"'
        f' rx="9" style="stroke: {colour}"/>',
        f'<text class="count" x="{x}" y="{middle + 4}" fill="{colour}">{arrow.count}</text>',
    ]


def _ports(boxes: dict[str, Box], arrows: list[Arrow]) -> tuple[dict[Arrow, int], dict[Arrow, int]]:
    """Return at which height each arrow, of those sorted by span, leaves and enters a room.

    Upwards leave the upper ports, the shortest uppermost; from below enter the lower ones, the
    shortest lowest: so no arrow crosses another that shares a room with it.
    """
    starts, ends = {}, {}
    for room, box in boxes.items():
        leaving = [(arrow, starts) for arrow in arrows if arrow.source == room]
        entering = [(arrow, ends) for arrow in arrows if arrow.target == room]
        ports = [*leaving, *reversed(entering)]
        for place, (arrow, heights) in enumerate(ports, start=1):
            heights[arrow] = box.top + (box.bottom - box.top) * place // (len(ports) + 1)
    return starts, ends


def _arrows(house: House) -> list[Arrow]:
    counts = Counter((room_of(pair.source), room_of(pair.target)) for pair in _pairs(house))
    return [
        Arrow(source, target, count)
        for (source, target), count in sorted(counts.items())
        if source != target and {source, target} <= set(ROOMS)
    ]


def _pairs(house: House) -> list[Arrow]:
    """Return each pair of modules of which one imports the other, once."""
    pairs = {(arrow.source, arrow.target) for arrow in house.imports}
    return [Arrow(source, target, 1) for source, target in sorted(pairs)]


def _groups(house: House) -> tuple[list[str], list[str]]:
    modules = house.modules(ROOT)
    doors = [name for name in DOORS if name in modules]
    return doors, [name for name in modules if name not in DOORS]


def _inside(modules: list[str]) -> list[str]:
    """Return the names that modules of one room have inside it, without ``__init__``."""
    names = [name.split(".", 1)[1].replace(".", "/") for name in modules]
    return [name for name in names if not name.endswith("__init__")]


def _chips(names: list[str], left: int, top: int, width: int) -> list[str]:
    lines = []
    for name, x, y in _places(names, width):
        lines += [
            f'<rect class="chip" x="{left + x}" y="{top + y}" width="{_chip_width(name)}"'
            f' height="{CHIP}" rx="5"/>',
            _text(left + x + 9, top + y + 17, name, "module"),
        ]
    return lines


def _places(names: list[str], width: int) -> list[tuple[str, int, int]]:
    """Return where each name stands, row after row, none beyond `width`."""
    places = []
    x = y = 0
    for name in names:
        if x and x + _chip_width(name) > width:
            x, y = 0, y + CHIP + CHIP_GAP
        places.append((name, x, y))
        x += _chip_width(name) + CHIP_GAP
    return places


def _chip_width(name: str) -> int:
    return round(len(name) * LETTER) + 18


def _height(modules: list[str], width: int) -> int:
    places = _places(_inside(modules), width - 34)
    return HEAD + (places[-1][2] if places else 0) + CHIP + 15


def _strip_height(house: House) -> int:
    width = WIDTH - 2 * EDGE
    doors, shared = _groups(house)
    places = _places(doors, width // 3 - 24) + _places(shared, width - width // 3 - 30)
    return HEAD + max((y for _, _, y in places), default=0) + CHIP + 15


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawing(House(CHECKOUT / "src" / "packedesm")))
