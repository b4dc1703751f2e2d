from packedesm.files import read_json


def test_the_report_is_one_page_that_says_what_was_done(run_rule):
    paths = run_rule("report", "results/sixty/report.html")
    page = paths.report.read_text()
    assert "<svg" in page
    assert "esm2_tiny_random" in page
    assert "random" in page.lower()
    assert str(read_json(paths.verification)["sequences"]) in page
