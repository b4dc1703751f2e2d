from packedesm.files import read_json


def test_sampled_records_agree_with_fair_esm(run_rule):
    paths = run_rule("verify", "results/sixty/verification.json")
    verification = read_json(paths.verification)
    assert verification["passed"] is True
    assert len({record["row"] for record in verification["records"]}) == 4
    assert {record["output"] for record in verification["records"]} == {"mean", "residue"}
    assert verification["worst"]["relative_l2"] <= verification["max_relative_l2"] == 1e-5
