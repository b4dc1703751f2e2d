import re
from html.parser import HTMLParser

import numpy as np
import pytest

from packedesm.files import read_json, write_record
from packedesm.paths import Paths
from packedesm.report import plots
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from tests.report.finished_run import off, write_run
from tests.typed import checkpoint, embed_plan

FASTA = f">a one\n{'M' + 'A' * 39}\n>b\n{'M' + 'C' * 79}\n>c\n{'M' * 8}\n>d\n{'M' * 8}\n"
HOSTILE = """<script>alert("x")</script>'&amp;"""
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
ALL = np.ones(1000, bool)
FIVE = [(str(k), np.arange(1000) % 5 == k) for k in range(5)]
FORBIDDEN = {"script", "link", "iframe", "img", "object", "embed", "base", "form", "image"}


class Page(HTMLParser):
    """What a browser would find: elements, ids, references, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.ids, self.references, self.texts, self.handlers = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in LOADING:
                self.references.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def record(row=0, record_id="a", relative_l2=2e-7, cosine=1.0, passed=True, output="mean"):
    return {
        "row": row,
        "id": record_id,
        "length": 40,
        "embedded_length": 40,
        "output": output,
        "relative_l2": relative_l2,
        "cosine": cosine,
        "passed": passed,
    }


def report(root, *, fasta=FASTA, shards=1, records=None, passed=True, **run) -> str:
    paths = write_run(root, fasta, shards, **run)
    off(paths)
    if records:
        verification = read_json(paths.verification)
        worst = {"cosine": 1.0, "relative_l2": 2e-7, "row": 0, "output": "mean"}
        write_record(
            paths.verification,
            verification
            | {"passed": passed, "sequences": len(records), "records": records, "worst": worst},
        )
    write_metrics(paths, shards)
    assert write_report(paths) == paths.report
    return paths.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    return report(tmp_path_factory.mktemp("good") / "proteins", records=[record()])


def test_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    assert not FORBIDDEN & set(page.tags)
    assert not page.handlers
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    # Names of XML vocabularies look like addresses, but nobody fetches them.
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in html


def test_page_has_six_figures_and_every_reference_in_it_has_one_target(html):
    page = Page(html)
    assert page.tags.count("svg") == 6
    assert len(page.ids) == len(set(page.ids))
    targets = {*page.references, *re.findall(r"url\((#[^)]*)\)", html)}
    assert {target[1:] for target in targets} <= set(page.ids)


def test_text_of_the_user_is_shown_and_never_obeyed(tmp_path):
    # A folder, an id, a file, a host and a device may be called anything.
    html = report(
        tmp_path / "<script>alert('sample')<",
        fasta=f">{HOSTILE}\n{'M' * 70}\n",
        records=[record(record_id=HOSTILE)],
        run={
            "host": HOSTILE,
            "plan": embed_plan(reasons=dict.fromkeys(("attention", "kernels"), HOSTILE)),
            "checkpoint": checkpoint(path=HOSTILE, model=HOSTILE, untrained=True),
        },
    )
    page = Page(html)
    assert not FORBIDDEN & set(page.tags)
    assert page.text.count(HOSTILE) >= 4
    assert "<script>alert('sample')<" in page.text


def test_random_weights_are_called_meaningless(tmp_path, html):
    warned = report(tmp_path, records=[record()], run={"checkpoint": checkpoint(untrained=True)})
    assert "These vectors mean nothing" in Page(warned).text
    assert "mean nothing" not in Page(html).text


def test_verification_is_judged_at_the_top(tmp_path, html):
    assert "Verified. 1 protein was computed again" in Page(html).text
    missed = [record(), record(row=1, relative_l2=0.3, cosine=0.9, passed=False)]
    failed = report(tmp_path / "failed", records=missed, passed=False)
    assert "Verification failed. Do not use these vectors. 1 of 2" in Page(failed).text
    assert failed.count('class="missed"') == 1
    text = Page(report(tmp_path / "off")).text
    assert "Not verified." in text
    assert "Verified." not in text.replace("Not verified.", "")


def test_a_vector_of_nan_is_reported_not_a_crash(tmp_path):
    broken = [record(), record(row=1, relative_l2=None, cosine=None, passed=False)]
    text = Page(report(tmp_path, records=broken, passed=False)).text
    assert "not a number" in text
    assert "a red cross" in text


def test_input_changes_and_repeats_are_told(tmp_path):
    text = Page(report(tmp_path, fasta=FASTA + ">e\nmkvj\n", empty_sequences="skip")).text
    assert "Flag truncated 1 record: Longer than the limit" in text
    assert "Flag upper_cased 1 record: Lower-case letters were read as upper case. Ids: e" in text
    assert "Flag j_replaced 1 record: J (leucine" in text
    assert "1 (8 residues): computed once" in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "1 protein is longer than the limit of 60 residues and lost the rest"),
        ({"long_sequences": "window"}, "went through the model in overlapping windows"),
        ({"long_sequences": "full"}, "Every protein was embedded whole."),
        ({"max_length": 500}, "None is longer than the limit of 500"),
    ],
)
def test_the_fate_of_long_proteins_is_told(tmp_path, options, told):
    assert told in Page(report(tmp_path, **options)).text


def test_files_are_listed_with_their_true_shapes(tmp_path):
    outputs = ["mean", "cls", "max", "residue"]
    text = Page(report(tmp_path, run={"outputs": outputs})).text
    assert "mean.npy 4 \N{MULTIPLICATION SIGN} 320 float32" in text
    # 40, 60 (of 80) and twice 8 residues; one offset more than records.
    assert "residue.npy 116 \N{MULTIPLICATION SIGN} 320 float32" in text
    assert "residue_offsets.npy 5 int64" in text


def test_each_shard_has_its_line_and_the_sum_follows(tmp_path):
    html = report(tmp_path, shards=3)
    table = html.split("<h2>How fast it was</h2>")[1].split("</table>")[0]
    assert re.findall(r"<td>(\d+|all)</td><td class=\"text\">", table) == ["0", "1", "2", "all"]


def test_what_a_gpu_did_is_shown(tmp_path):
    sample = {"utilisation_percent": 97, "memory_bytes": 3 << 30, "power_w": 612.0}
    sample |= {"seconds": 0.0, "sm_clock_mhz": 1755}
    gpu = {"available": True, "reason": None, "samples": [sample], "energy_j": 7200.0}
    device = {
        "kind": "cuda",
        "name": "NVIDIA H200",
        "uuid": "GPU-1",
        "memory_bytes": 1,
        "threads": 2,
    }
    text = Page(report(tmp_path, run={"gpu": gpu, "device": device})).text
    assert "NVIDIA H200 GPU-1 laptop 97% 3 GiB 612 W 1,755 MHz 2 Wh" in text
    assert "the job ran on a CPU" not in text


def test_what_a_gpu_did_not_tell_is_unknown(tmp_path):
    sample = {"utilisation_percent": None, "memory_bytes": None, "power_w": None}
    sample |= {"seconds": 0.0, "sm_clock_mhz": 1755}
    refused = "NVML: power_w: Not Supported"
    gpu = {"available": True, "reason": refused, "samples": [sample], "energy_j": None}
    text = Page(report(tmp_path, run={"gpu": gpu})).text
    assert "laptop unknown unknown unknown 1,755 MHz unknown" in text
    assert f"not measured: {refused}" in text


def test_the_same_run_makes_the_same_page(tmp_path):
    first = report(tmp_path, records=[record()])
    assert write_report(Paths(tmp_path)).read_text(encoding="utf-8") == first


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.lengths(np.array([0, 0, 5]), 2),
        lambda: plots.lengths(np.bincount([1, 35_000]), None),
        lambda: plots.padding(3, 3, 3),
        lambda: plots.throughput([(0.0, np.array([1e-3]), np.array([1]))]),
        lambda: plots.throughput([(5.0, np.array([]), np.array([])), (0, np.ones(1), np.ones(1))]),
        lambda: plots.throughput([(0.0, np.arange(1, 50_001.0), np.full(50_000, 7))]),
        lambda: plots.distances([record(relative_l2=0.0)], 1e-5),
        lambda: plots.distances([record(relative_l2=None)], 0.02),
        lambda: plots.angles([record(cosine=None)], 0.9995),
        lambda: plots.angles([record(cosine=None)], 1.0),
        lambda: plots.vectors(np.array([[0.0, 0], [1, 0]]), np.array([1.0, 0]), [("5", ALL[:2])]),
        lambda: plots.vectors(np.random.default_rng(1).random((1000, 2)), np.ones(2), FIVE),
    ],
)
def test_figures_stand_extreme_runs_and_stay_small(draw):
    svg = draw()
    assert svg.startswith("<svg ")
    assert "nan" not in re.findall(r' d="([^"]*)"', svg)
    assert len(svg) < 200_000


def test_the_demo_model_is_said_to_be_for_trying_only(tmp_path, html):
    said = "For trying the software, not for science"
    assert said in report(tmp_path, records=[record()], run={"checkpoint": checkpoint(demo=True)})
    assert said not in html


def test_an_unknown_peak_has_its_reason_and_no_share(tmp_path):
    reason = "matrix products could not be timed: out of memory"
    html = report(tmp_path / "r", run={"matmul_peak_flops": None, "matmul_peak_reason": reason})
    assert f"(unknown: {reason})" in Page(html).text
    assert "busy" not in html


def test_a_share_above_the_peak_is_no_headline(tmp_path):
    html = report(tmp_path / "r", run={"matmul_peak_flops": 1e9})  # the packs reach twice that
    text = Page(html).text
    assert "unclear of the device" in text
    assert "speed limit the machine was busy when the limit was measured" in text
    assert "is unclear where it comes out above 100%: the machine was busy with other work" in text
    assert "200" not in text


def test_what_a_gpu_computes_in_lower_precision_is_said(tmp_path, html):
    assert "TF32" not in html  # of a CPU
    device = {"kind": "cuda", "name": "a GPU", "uuid": "GPU-1", "memory_bytes": 1, "threads": 2}
    exact = Page(report(tmp_path / "exact", run={"device": device})).text
    assert "Products on the GPU no TF32, sums of products in float32" in exact
    precision = {"tf32": True, "float16_sums": False, "bfloat16_sums": False}
    coarse = report(tmp_path / "tf32", run={"device": device, "precision": precision})
    assert "Products on the GPU tf32" in Page(coarse).text
