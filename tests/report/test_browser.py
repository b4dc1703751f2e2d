"""The report in a real browser: at three widths, light and dark, on paper."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.report.browser import NAMES, Tab, browser, executable
from tests.report.finished_run import record, report
from tests.typed import checkpoint

SWITCH = "PACKEDESM_TEST_BROWSER"
WIDTHS = (1280, 500, 390)
PAPER = 718  # pixels, of A4 between margins
CONTRAST = 4.5  # WCAG 2, level AA
LETTERS = 8.5  # pixels, that a line of text in a figure is high

LONG_ID = f"tr|{'A' * 150}_{'an-id-without-any-blank.' * 6}"
FASTA = (
    "".join(f">sp|P{k:05}|PROT{k}_HUMAN\n{'MKTAYIAKQR' * 2}{'GAVLI' * k}\n" for k in range(30))
    + f">{LONG_ID}\n{'MKV' * 60}\n>again\n{'MKV' * 60}\n>stop\nMK*VJ*\n>low\nmkv\n"
)
SAMPLE = {"utilisation_percent": 97, "memory_bytes": 3 << 30, "power_w": 612.0}
SAMPLE |= {"seconds": 0.0, "sm_clock_mhz": 1755}
# All that a page can hold, and whatever is long.
FULL = {
    "fasta": FASTA,
    "annotations": "id\t"
    + "a_long_name_of_a_column" * 4
    + "\n"
    + "".join(f"sp|P{k:05}|PROT{k}_HUMAN\t{'family ' * (k % 9)}{k % 9}\n" for k in range(25)),
    "shards": 4,
    "passed": False,
    "records": [
        record(0, LONG_ID),
        record(1, "b", relative_l2=0.3, cosine=0.9, passed=False),
        record(2, "c", relative_l2=None, cosine=None, passed=False, output="residue"),
    ],
    "run": {
        "arrays": ["mean", "residue"],
        "attention": "fa3",
        "host": "node-with-a-long-name.cluster.example.org",
        "device": {
            "kind": "cuda",
            "name": "NVIDIA H200 141GB HBM3e MIG 3g.71gb",
            "uuid": "GPU-01234567-89ab-cdef-0123-456789abcdef",
            "memory_bytes": 1,
            "threads": 2,
        },
        "gpu": {"available": True, "reason": None, "samples": [SAMPLE], "energy_j": 7200.0},
        "checkpoint": checkpoint(path=f"/scratch/{'deep/' * 30}esm2.pt", untrained=True),
        "matmul_peak_flops": 1e9,
        "retried_packs": 1,
        "restarts": 2,
    },
}
LAYERED = [f"{output}.layer{n}" for output in ("mean", "cls", "max", "residue") for n in (0, 3, 33)]
HEADS = ["logits", "log_likelihood", "masked_marginals", "pseudo_perplexity", "contacts"]
MANY = [*(record(output=name) for name in LAYERED), record(1, relative_l2=1e-15, output="mean")]
MANY += [record(2, relative_l2=0.0123, output=name, cosine=None, passed=False) for name in HEADS]
PAGES = {
    "full_" + "a_long_name_of_a_sample" * 8: FULL,
    "one": {"fasta": ">a\nMKTAYIAKQR\n", "records": [record()]},
    "same": {"vectors": lambda shape, dtype: np.full(shape, 0.3, dtype)},
    "windows": {
        "long_sequences": "window",
        "run": {"arrays": ["residue"], "checkpoint": checkpoint(demo=True)},
    },
}

# What is wrong with a page, found by a script in it. All that can be unfolded is, first.
# A phone would widen the window to what does not fit into it: its width is what was asked for.
FINDINGS = """(width => {
  const found = [];
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  const name = element => element.tagName + " " + element.textContent.trim().slice(0, 40);
  const page = document.documentElement;
  if (page.scrollWidth > width) found.push("the page is " + page.scrollWidth + " wide");
  const scrolls = element => element && (element.scrollWidth > element.clientWidth
    && getComputedStyle(element).overflowX === "auto" || scrolls(element.parentElement));
  const rgb = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return {light: [r, g, b].map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
      .reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0), a};
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const paint = rgb(getComputedStyle(element).backgroundColor);
      if (paint.a === 1) return paint.light;
    }
    return 1;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("style")) continue;
    count += 1;
    const style = getComputedStyle(element);
    const inFigure = element.closest("svg");
    const [low, high] = [rgb(inFigure ? style.fill : style.color).light, behind(element)]
      .sort((one, other) => one - other);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < CONTRAST) found.push("contrast " + ratio.toFixed(2) + ": " + name(element));
    const range = document.createRange();
    range.selectNodeContents(texts.currentNode);
    const box = range.getBoundingClientRect();
    if ((box.right > width + 1 || box.left < -1) && !scrolls(element))
      found.push("beyond the edge: " + name(element));
    const lines = range.getClientRects().length;
    if (lines > 2 && texts.currentNode.data.trim().length < 6 * lines)
      found.push("in " + lines + " lines: " + name(element));
    if (inFigure && Math.min(box.width, box.height) < LETTERS && element.textContent.length > 1)
      found.push("small: " + name(element));
  }
  if (count < 150) found.push("only " + count + " texts");
  const figures = [...document.querySelectorAll("figure")].map(f => f.getBoundingClientRect().left);
  if (width < 640 && new Set(figures).size > 1) found.push("figures side by side");
  if (width > 1000 && new Set(figures).size !== 2) found.push("not two columns of figures");
  return found;
})""".replace("CONTRAST", str(CONTRAST)).replace("LETTERS", str(LETTERS))


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A browser's page; where it was asked for, a browser's absence is a failure."""
    if executable() is None:
        wanted = os.environ.get(SWITCH) == "1"
        (pytest.fail if wanted else pytest.skip)(f"there is none of {', '.join(NAMES)}")
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / request.param
    report(folder, **PAGES[request.param])
    return folder / "report.html"


def complaints(events: list[dict], page: Path) -> list[str]:
    """Return what the page logged, threw, or asked for beside itself."""
    found = []
    for event in events:
        method, what = event["method"], event["params"]
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            found.append(str(what))
        if method == "Network.requestWillBeSent" and what["request"]["url"] != page.as_uri():
            found.append(what["request"]["url"])
    return found


@pytest.mark.parametrize("page", PAGES, indirect=True, ids=[name[:8] for name in PAGES])
def test_a_page_is_legible_at_any_width_light_and_dark_and_asks_for_nothing(tab: Tab, page):
    found, backgrounds = {}, set()
    for dark in (False, True):
        for width in WIDTHS:
            events = tab.show(page, width, dark=dark)
            wrong = complaints(events, page) + tab.evaluate(f"{FINDINGS}({width})")
            if wrong:
                found[width, "dark" if dark else "light"] = wrong
        backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert found == {}
    assert len(backgrounds) == 2


def test_the_table_of_many_arrays_has_room_on_a_page_of_1000_pixels(tab: Tab, tmp_path):
    report(tmp_path, records=MANY, passed=False)
    tab.show(tmp_path / "report.html", 1000, dark=False)
    table = "document.querySelector('#verified-arrays .scroll')"
    rows = tab.evaluate(f"{table}.querySelectorAll('tr').length")
    assert rows == len(MANY) + 1
    wide, room = (tab.evaluate(f"{table}.{name}Width") for name in ("scroll", "client"))
    assert wide <= room


@pytest.mark.parametrize("page", [*PAGES][:1], indirect=True, ids=["full"])
def test_paper_is_white_and_holds_the_whole_page(tab: Tab, page):
    tab.show(page, PAPER, dark=True)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[DARK])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate(f"{FINDINGS}({PAPER})") == []
    assert tab.evaluate(HIDDEN) == []
    tab.call("Emulation.setEmulatedMedia", media="", features=[])
    assert tab.pdf().startswith(b"%PDF")


DARK = {"name": "prefers-color-scheme", "value": "dark"}
# What paper would not show: it cannot scroll.
HIDDEN = """[...document.querySelectorAll(".sheet, .scroll")]
  .filter(part => getComputedStyle(part).overflowY !== "visible").map(part => part.className)"""
