import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from packedesm.embedding.record import Seconds
from packedesm.files import read_record, write_record
from packedesm.paths import Paths
from packedesm.report import plots
from packedesm.report.course import course_of
from packedesm.report.page import write_report
from packedesm.report.svg import COLOURS
from packedesm.results.manifest import write_manifest
from packedesm.sequences.flags import FLAGS
from tests.report.finished_run import FASTA, measured, record, report
from tests.typed import checkpoint, embed_plan

TWO = "2 \N{MULTIPLICATION SIGN} 10⁻"  # and a power
HOSTILE = """<script>alert("x")</script>'&amp;"""
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
LAYERS = ["residue.layer3", "mean.layer3", "mean.layer0", "mean", "cls.layer0", "cls"]
WIDE = ("mean", "residue", "logits", "log_likelihood", "masked_marginals", "pseudo_perplexity")
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
    text = Page(html).text
    assert "Verified. 1 protein was computed again" in text
    assert "They were to be 4 of 5 proteins; asked for 16, limited to 10% of the run's" in text
    missed = [record(), record(row=1, relative_l2=0.3, cosine=0.9, passed=False)]
    failed = report(tmp_path / "failed", records=missed, passed=False)
    assert "Verification failed. Do not use these vectors. 1 of 2" in Page(failed).text
    assert failed.count('class="missed"') == 2  # of its array, and its own
    text = Page(report(tmp_path / "off")).text
    assert "Not verified." in text
    assert "Verified." not in text.replace("Not verified.", "")


def test_a_vector_of_nan_is_reported_not_a_crash(tmp_path):
    broken = [record(), record(row=1, relative_l2=None, cosine=None, passed=False)]
    text = Page(report(tmp_path, records=broken, passed=False)).text
    assert "not a number" in text
    assert "a red cross" in text


def test_every_array_that_was_verified_has_a_line(tmp_path):
    arrays = ("mean", "mean.layer3", "logits", "contacts", "pseudo_perplexity")
    records = [record(output=name, cosine=1.0 if "mean" in name else None) for name in arrays]
    records[-1]["against"] = "masked_marginals"
    records[3] |= {"relative_l2": 4e-7, "absolute": 3e-5}
    html = report(tmp_path, records=records, run={"arrays": arrays})
    text = Page(html.split('id="verified-arrays"')[1].split("<h2>")[0]).text
    assert (
        f"mean.layer3 fair-esm the mean over the residues of each protein, from layer 3 1 {TWO}⁷"
        in text
    )
    assert "logits fair-esm the logits of all 33 tokens at each residue 1 2" in text
    assert "upper triangles, row by row 1 4 \N{MULTIPLICATION SIGN} 10⁻⁷ 1" in text
    assert "3 \N{MULTIPLICATION SIGN} 10⁻⁵ yes" in text  # contacts have no cosine
    assert "pseudo_perplexity (against masked_marginals )" in text
    assert (
        "pseudo_perplexity this run\N{RIGHT SINGLE QUOTATION MARK}s own masked_marginals the pseudo"
        in text
    )
    assert "not a number" not in text
    assert Page(html).tags.count("svg") == 6


def test_where_no_array_has_vectors_there_are_no_angles(tmp_path):
    html = report(
        tmp_path, records=[record(output="contacts", cosine=None)], run={"arrays": ["contacts"]}
    )
    assert "Whether they point the same way" not in html
    assert "How exact the results are" in html


def test_what_was_not_compared_is_told(tmp_path):
    paths = measured(tmp_path, records=[record()])
    verification = read_record(paths.verification)
    gone = dict.fromkeys(verification["arrays"][0]) | {"array": "contacts", "compared": 0}
    gone["against"] = "reference"
    verification["arrays"].append(gone)
    said = {"not_compared": ["contacts were too large"], "masked_places": 21}
    write_record(paths.verification, verification | said)
    text = Page(write_report(paths).read_text(encoding="utf-8")).text
    assert "contacts fair-esm contact probabilities" in text
    assert "0 not compared" in text
    assert "contacts were too large." in text.split("How exact")[0]  # at the top already
    assert text.count("contacts were too large.") == 2
    assert "it was compared at 21 places" in text


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
    text = Page(report(tmp_path, run={"arrays": outputs})).text
    assert "mean.npy 4 \N{MULTIPLICATION SIGN} 320 float32" in text
    # 40, 60 (of 80) and twice 8 residues; one offset more than records.
    assert "residue.npy 116 \N{MULTIPLICATION SIGN} 320 float32" in text
    assert "residue_offsets.npy 5 int64" in text


def test_the_time_before_the_first_pack_is_told_by_what_it_went_into(tmp_path):
    parts = Seconds(10.0, 5.0, 4.0, 0.2, 16.0, starting=3.0, checking=2.0, peak=1.0)
    page = Page(report(tmp_path, run={"seconds": parts})).text
    told = page.split("Where the time went")[1].split("Using the")[0]
    for name, seconds in (
        ("Starting Python and its libraries, for embedding", 3),
        ("Starting: weights, device, what is chosen", 7),
        ("First check against the reference", 2),
        ("Measuring the speed limit", 1),
        ("Embedding", 5),
        ("Writing what was embedded", 1),
    ):
        assert re.search(rf"{re.escape(name)} {seconds}(\.0+)? s", told), (name, told)


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


def throughput(*shards) -> str:
    return plots.throughput(**course_of(shards))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.lengths(np.array([0, 0, 5]), 2),
        lambda: plots.lengths(np.bincount([1, 35_000]), None),
        lambda: plots.padding(3, 3, 3),
        lambda: throughput((0.0, np.array([1e-3]), np.array([1]))),
        lambda: throughput((5.0, np.array([]), np.array([])), (0, np.ones(1), np.ones(1))),
        lambda: throughput((0.0, np.arange(1, 50_001.0), np.full(50_000, 7))),
        lambda: plots.distances([record(relative_l2=0.0)], 1e-5),
        lambda: plots.distances([record(relative_l2=None)], 0.02),
        lambda: plots.distances([record(output=name) for name in WIDE], 0.02),
        lambda: plots.distances([record(output=name) for name in ("mean", "cls", "max")], 0.02),
        lambda: plots.angles([record(cosine=None)], 0.9995),
        lambda: plots.angles([record(cosine=None)], 1.0),
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
    text = Page(html).text
    assert "speed limit is unknown" in text
    assert "busy" not in text and "matrix products alone, measured" not in text


def test_a_share_above_the_peak_is_no_headline(tmp_path):
    html = report(tmp_path / "r", run={"matmul_peak_flops": 1e9})  # the packs reach twice that
    text = Page(html).text
    assert "0.002 TFLOP/s the machine was busy when its limit was measured" in text
    assert "0.002 unclear" in text
    assert "in the same job, before and after the work (0.001 TFLOP/s)" in text
    assert "unclear where the work was faster than the peak: the machine was busy" in text
    assert "200" not in text


def test_a_peak_that_changed_is_told_with_both_values(tmp_path):
    def said(name, lowest, highest):
        peaks = {"matmul_peak_flops": highest, "matmul_peak_range": (lowest, highest)}
        return Page(report(tmp_path / name, run=peaks)).text

    changed = "The speed of the machine changed while the job ran: its products came to "
    text = said("changed", 6e9, 8e9)
    assert changed + "0.006 TFLOP/s at one time and 0.008 at another. A share" in text
    assert "speed changed while it ran" in text
    assert "changed while" not in said("steady", 7e9, 8e9)


def test_what_a_gpu_computes_in_lower_precision_is_said(tmp_path, html):
    assert "TF32" not in html  # of a CPU
    device = {"kind": "cuda", "name": "a GPU", "uuid": "GPU-1", "memory_bytes": 1, "threads": 2}
    exact = Page(report(tmp_path / "exact", run={"device": device})).text
    assert "Products on the GPU no TF32, sums of products in float32" in exact
    precision = {"tf32": True, "float16_sums": False, "bfloat16_sums": False}
    coarse = report(tmp_path / "tf32", run={"device": device, "precision": precision})
    assert "Products on the GPU tf32" in Page(coarse).text


def test_cut_proteins_are_named_with_what_they_lost(tmp_path):
    more = "".join(f">cut{k}\n{'MKVLA' * (13 + k)}\n" for k in range(12))
    html = report(tmp_path, fasta=FASTA + more)
    text = Page(html).text
    assert "lost the rest of the sequence: which ones" in text
    assert "The first 10 of 13 proteins that were cut" in text
    assert "1 b 80 60 20 25.0% 4 cut0 65 60 5 7.7%" in text
    assert "cut8" in text and "cut9" not in text
    assert 'results.index["flags"].str.contains("truncated")' in text


def test_a_flag_that_nobody_explains_comes_first(tmp_path, monkeypatch):
    monkeypatch.delitem(FLAGS, "upper_cased")
    text = Page(report(tmp_path, fasta=FASTA + ">low\nmkv\n")).text
    told = "Flag upper_cased 1 record: See the table of flags in the documentation. Ids: low"
    assert 0 < text.index(told) < text.index("Flag truncated")


def test_records_in_float32_are_named(tmp_path):
    text = Page(report(tmp_path, run={"float32_rows": (2,)})).text
    assert "Flag float32 2 records:" in text  # and its repeat
    assert "computed in float32. Ids: c , d" in text


def test_warnings_stand_at_the_top_each_on_a_line(tmp_path, html):
    warned = report(tmp_path, fasta=FASTA + ">e\nMJ*V\n")
    top = warned.split('<div class="cards">')[0]
    assert top.count("<li>") == 3
    assert "Before you use the vectors:" in Page(top).text


def along(numbers):
    """Vectors of which only the first number is not zero."""

    def vectors(shape, dtype):
        array = np.zeros(shape, dtype)
        array[:, 0] = numbers[: shape[0]]
        return array

    return vectors


def test_the_largest_error_is_told_beside_distances_between_proteins(tmp_path):
    # 8 and 10: 2 / 9 apart; of 8, 10 and 12 with each other: 2 / 9, 4 / 10 and 2 / 11.
    shown = report(tmp_path, records=[record()], vectors=along([8, 10, 12]))
    text = Page(shown).text
    assert "typically 0.22 apart, and 99 of 100 pairs more than 0.18 (3 proteins," in text
    assert f"The largest error of a mean vector is {TWO}⁷. Only proteins that are nearly" in text
    assert f"{TWO}⁷ largest error 1,100,000 times smaller than proteins typically differ" in text


def test_an_error_of_another_output_is_not_told_as_that_of_the_picture(tmp_path):
    records = [record(relative_l2=2e-8), record(output="cls")]
    text = Page(report(tmp_path, records=records, run={"arrays": ["mean", "cls"]})).text
    assert f"The largest error of a mean vector is {TWO}⁸" in text
    assert f"{TWO}⁷ largest error relative to float32; limit" in text


@pytest.mark.parametrize(
    ("given", "told", "figures"),
    [
        ({}, "Each dot is the mean vector of one protein.", 4),
        ({"fasta": ">a\nMKV\n"}, "needs three different proteins or more", 3),
        ({"fasta": ">a\nMKV\n>b\nMKA\n>c\nMKV\n"}, "needs three different proteins or more", 3),
        ({"vectors": along([7] * 9)}, "All vectors are the same", 3),
        ({"vectors": along([0] * 9)}, "All vectors are the same", 3),
        ({"vectors": along([np.nan] * 9)}, "4 vectors of those drawn from the results hold", 3),
        ({"run": {"arrays": ["residue"]}}, "there is none for a whole protein to draw", 3),
        ({"run": {"arrays": ["residue", "max"]}}, "Each dot is the max vector", 4),
        ({"run": {"arrays": LAYERS}}, "Each dot is the mean vector of one protein.", 4),
        ({"run": {"arrays": LAYERS[:3]}}, "Each dot is the mean.layer3 vector", 4),
    ],
)
def test_the_vectors_are_drawn_where_there_is_something_to_see(tmp_path, given, told, figures):
    page = Page(report(tmp_path, **given))
    assert told in page.text
    assert page.tags.count("svg") == figures


def test_where_the_time_went_is_what_the_steps_recorded(tmp_path):
    report(tmp_path, shards=2, records=[record()])
    paths = Paths(tmp_path)
    for path, seconds in (
        (paths.sharding_seconds, 90.0),
        (paths.merging_seconds, 5.0),
        (paths.verification, 3.0),
    ):
        before = read_record(path)
        assert before["seconds"] >= 0
        write_record(path, before | {"seconds": seconds})
    verification = read_record(paths.verification)
    write_record(paths.verification, verification | {"reference_seconds": 7.0})
    text = Page(write_report(paths).read_text()).text
    assert "Reference for the verification 7.00 s" in text
    assert "Reading the FASTA and cutting shards 1 min 30 s" in text
    assert "Starting: weights, device, what is chosen 2.00 s" in text  # of two jobs
    assert "Merging the shards 5.00 s" in text
    assert "Verification 3.00 s" in text


def test_each_choice_has_its_reason_and_weights_their_layout(tmp_path):
    report(tmp_path)
    paths = Paths(tmp_path)
    metrics = read_record(paths.metrics)
    metrics["model"]["layout"] = "a folder of some library"
    reasons = {"dtype": "float16 missed its bar", "attention": "named"}
    metrics["runs"][0]["plan"]["reasons"] = reasons
    write_record(paths.metrics, metrics)
    text = Page(write_report(paths).read_text()).text
    assert "read as a folder of some library" in text
    assert "Number format of the computation float32 : float16 missed its bar" in text
    assert "Attention sdpa : named" in text
    assert "Tokens in a pack, at most 100" in text


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    sample = tmp_path / 'it\'s a "sample"'
    html = report(sample, run={"arrays": ["mean", "residue"]})
    write_manifest(Paths(sample), {})
    code = unescape(html.split("<h3>In Python</h3>\n<pre>")[1].split("</pre>")[0])
    monkeypatch.chdir(tmp_path)
    known = {}
    exec(code, known)
    assert len(known["results"]) == 4
    query = re.findall(r"<code>(results\.index\[.*?)</code>", html)
    assert eval(unescape(query[0]), known)["id"].tolist() == ["b"]


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        (LAYERS, "mean"),
        (["cls.layer0", "cls.layer3"], "cls.layer3"),
        (["residue.layer0", "residue"], "residue"),
        (["logits", "pseudo_perplexity"], "logits"),
    ],
)
def test_the_examples_read_the_array_of_the_picture(tmp_path, monkeypatch, arrays, named):
    """And of outputs without a picture the first, of its last layer."""
    html = report(tmp_path / "sample", run={"arrays": arrays})
    write_manifest(Paths(tmp_path / "sample"), {})
    code, rest = unescape(html.split("<h3>In Python</h3>\n<pre>")[1]).split("</pre>", 1)
    assert f'numpy.load("{named}.npy"' in rest
    assert f'np$load("{named}.npy")' in rest
    monkeypatch.chdir(tmp_path)
    exec(code, known := {})
    if named not in ("residue", "logits"):
        assert f'results.array("{named}")' in code
        vector = known["results"].vector(0, named)
        exec(code.replace("results.vector(", "vector = results.vector("), known)
        np.testing.assert_array_equal(known["vector"], vector)


def test_every_colour_of_the_page_is_known_in_light_and_in_dark(html):
    light, dark = html.split("@media screen and (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used >= {"ink", "card", "length-3"}
    used |= set(COLOURS)
    for style in (light, dark.split("* { box-sizing")[0]):
        assert used <= set(re.findall(r"--([\w-]+):", style))


@pytest.mark.parametrize(
    ("fasta", "told"),
    [
        (FASTA, "From 8 to 80 residues, half of them below 24."),
        (">a\nMKV\n", "It has 3 residues."),
        (">a\nMKV\n>b\nMKA\n", "All have 3 residues."),
    ],
)
def test_lengths_are_told_as_one_would_say_it(tmp_path, fasta, told):
    assert told in Page(report(tmp_path, fasta=fasta)).text


def test_a_table_of_the_user_makes_a_second_map_and_what_it_lacks_is_told(tmp_path):
    annotations = "id\tfamily <b>\na\t<i>x\nb\ty\nnobody\tz\n"
    html = report(tmp_path, annotations=annotations)
    page = Page(html)
    assert page.tags.count("svg") == 5
    assert "The vectors by family <b>" in page.text
    assert "Of 2 proteins shown it has no value." in page.text
    assert "<i>" not in html
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (
            "id\tkind\nB\tx\nC\ty\n",
            "table.tsv: has 2 ids, the first 'B', and none is that of a record, of which the first "
            "is 'a'; it colours no map until they are alike",
        ),
        ("id\tkind\n", "table.tsv: tells of no protein, and colours no map"),
    ],
)
def test_a_table_that_tells_of_no_record_is_said_in_log_and_page(
    tmp_path, caplog, annotations, said
):
    page = Page(report(tmp_path, annotations=annotations))
    assert said in page.text
    assert "by kind" not in page.text
    (line,) = [found for found in caplog.messages if "table.tsv" in found]
    assert said in line


@pytest.mark.parametrize("annotations", ["id\tkind\nc\tx\n", "id\tkind\nc\t\n"])
def test_a_table_that_tells_of_a_record_beyond_the_sample_is_no_wrong_one(
    tmp_path, monkeypatch, annotations
):
    monkeypatch.setattr("packedesm.report.vectors.POINTS", 3)  # of a, b and d
    text = Page(report(tmp_path, annotations=annotations)).text
    assert "colours nothing" not in text
    assert "by kind" in text


def test_a_sample_of_many_proteins_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr("packedesm.report.vectors.POINTS", 3)
    text = Page(report(tmp_path)).text
    assert "The map is of a sample: 3 of 4 proteins, evenly over the input." in text
    three = report(tmp_path / "three", fasta=">a\nMK\n>b\nMV\n>c\nMA\n")
    assert "The map is of a sample" not in Page(three).text
