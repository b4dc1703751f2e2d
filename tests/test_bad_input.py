"""Whatever is wrong with the input: one clear line, a non-zero exit, and nothing half-written."""

import argparse
import runpy
from types import SimpleNamespace

import pytest
import torch

from packedesm.cli import main
from packedesm.config import resolve
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from tests.typed import checkpoint
from tests.workflow import ROOT, refusal, snakemake, write_config

GOOD = ">first\nMKV\n>second\nACDEFGHIK\n"

BAD_FASTA = {
    "empty": ("", ["empty"]),
    "not FASTA": ("id,sequence\n1,MKV\n", ["not FASTA", "line 1"]),
    "digits": (">a\nMKV\n>b x\nMK\nV1M\n", ["record 2", "'b'", "line 3", "'1'", "residue 4"]),
    "gaps": (">a\nMK-V\n", ["record 1", "'-'", "residue 3", "gaps"]),
    "stops": (">a\nMK.V\n", ["record 1", "line 2", "'.'", "residue 3", "gffread", "write *"]),
    "chains": (">a\nMKV:MKV\n", ["record 1", "line 2", "':'", "residue 4", "chains"]),
    "a sentence": (">a\nMKV\n>b\nSequence unavailable\n", ["line 4", "no sequence", "record"]),
    "half a character": (">a\nMK\u2013V\n", ["line 2", "U+2013 EN DASH", "residue 3"]),
    "GFF3": ("##gff-version 3\n##FASTA\n>a\nACGT\n", ["line 1", "GFF3", "gffread"]),
    "same id": (">a\nMKV\n>a\nACD\n", ["'a'", "record", "unique"]),
    "no residues": (">a\nMKV\n>b\n\n", ["record 2", "'b'", "line 3", "empty_sequences"]),
}


@pytest.fixture
def embed(tmp_path, capsys):
    """Return a function that runs `packedesm embed` and gives exit status, error line, folder."""

    def run(fasta, *options):
        out = tmp_path / "out"
        arguments = ["embed", str(fasta), "-o", str(out), "--checkpoints", str(tmp_path / "ck")]
        status = main([*arguments, *options])
        errors = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("packedesm: ")
        ]
        assert len(errors) == 1
        return status, errors[0], out

    return run


@pytest.mark.parametrize("name", BAD_FASTA)
def test_bad_fasta(tmp_path, embed, name):
    text, words = BAD_FASTA[name]
    path = tmp_path / "bad.fasta"
    path.write_text(text)
    status, error, out = embed(path)
    assert status == 2
    assert not out.exists()
    for word in [str(path), *words]:
        assert word in error


def test_a_missing_file(tmp_path, embed):
    status, error, out = embed(tmp_path / "nothing.fasta")
    assert status == 2
    assert "nothing.fasta: no such FASTA file" in error
    assert not out.exists()


ADDRESSES = [
    "https://rest.uniprot.org/x.fasta?query=a&b",
    "HTTP://x.org//x.fasta",
    "ftp://x.org/x.fa.gz",
    "s3://bucket/x.fasta",
    "gs://bucket/x.fasta",
    "file:///data/x.fasta",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_echoed_as_typed(tmp_path, monkeypatch, embed, address):
    monkeypatch.chdir(tmp_path)
    status, error, out = embed(address)
    assert status == 2
    assert f"{address!r} is a web address" in error
    assert "download it first" in error
    assert not out.exists()
    for config in ({"fasta": address}, {"fasta": [address]}, {"fasta": {"a": [address]}}):
        assert f"config key fasta: {address!r} is a web address" in refusal(config)


@pytest.mark.parametrize("option", ["-o", "--model", "--checkpoints"])
def test_an_address_is_no_place_for_results_or_models(tmp_path, monkeypatch, good, embed, option):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, error, _ = embed(good, option, "s3://bucket/x")
    assert status == 2
    assert "'s3://bucket/x' is a web address" in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a:b", "s3:/x", "C:/x", "x//y", "://x"])
def test_a_path_that_only_looks_like_an_address_is_a_path(tmp_path, monkeypatch, embed, name):
    monkeypatch.chdir(tmp_path)
    assert "no such FASTA file" in embed(name)[1]


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.fasta"
    path.write_text(GOOD)
    return path


def test_an_unknown_model_is_refused_with_the_nearest_name(good, embed):
    status, error, out = embed(good, "--model", "esm2_t33_650M_UR50")
    assert status == 2
    assert "esm2_t33_650M_UR50D" in error
    assert not out.exists()


def test_a_checkpoint_of_the_wrong_shape(tmp_path, good, embed):
    cfg = argparse.Namespace(
        encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=2, token_dropout=True
    )
    name = "encoder.sentence_encoder.embed_tokens.weight"
    path = tmp_path / "wrong.pt"
    torch.save({"cfg": {"model": cfg}, "model": {name: torch.zeros(33, 64)}}, path)
    status, error, out = embed(good, "--model", str(path))
    assert status == 2
    assert "wrong.pt" in error
    assert "embed_tokens.weight has shape [33, 64], expected [33, 32]" in error
    assert not out.exists()


def test_a_backend_that_is_not_installed(good, embed):
    status, error, out = embed(good, "--attention", "flash_attn")
    assert status == 2
    assert "flash_attn" in error
    assert not out.exists()


def test_an_option_out_of_range(good, embed):
    status, error, _ = embed(good, "--max-length", "0")
    assert status == 2
    assert "max_length" in error


def test_a_folder_with_content_is_not_touched(tmp_path, good, embed):
    kept = tmp_path / "out" / "precious.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    status, error, out = embed(good)
    assert status == 2
    assert "not of a run" in error
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_the_command_writes_what_the_workflow_writes(tmp_path, good, capsys):
    out = tmp_path / "out"
    assert main(["embed", str(good), "-o", str(out), "--checkpoints", str(tmp_path)]) == 0
    paths = Paths(out)
    published = {path.name for path in out.iterdir()}
    assert published == {
        path.name
        for path in [
            *paths.arrays(["mean"]),
            *(paths.index, paths.skipped, paths.manifest, paths.metrics, paths.packing),
            *(paths.throughput, paths.verification, paths.report, *paths.multiqc()),
        ]
    }
    assert "report.html" in capsys.readouterr().out


def check_stopped(folder, errors, name):
    """One line says what is wrong with `name`, and no shard or manifest of it is left."""
    assert "Traceback" not in errors
    (error,) = [line for line in errors.splitlines() if line.startswith("packedesm: ")]
    for word in [str(folder / "bad.fasta"), *BAD_FASTA[name][1]]:
        assert word in error
    assert not any((folder / "results" / "bad" / ".work").rglob("*.fasta"))
    assert not (folder / "results" / "bad" / "manifest.json").exists()


@pytest.mark.parametrize("name", BAD_FASTA)
@pytest.mark.usefixtures("root_logger")
def test_the_script_of_the_workflow_stops_with_the_same_line(tmp_path, capsys, name):
    """Without Snakemake around it, which does the same with every failed job."""
    path = tmp_path / "bad.fasta"
    path.write_text(BAD_FASTA[name][0])
    paths = Paths(tmp_path / "results" / "bad")
    checkpoint().write(paths.checkpoint)
    options = ShardOptions.part(resolve({"fasta": str(path)}))
    job = SimpleNamespace(
        input=SimpleNamespace(fasta=[str(path)], checkpoint=paths.checkpoint),
        params=SimpleNamespace(root=paths.root, shards=1, options=options),
        log=[str(tmp_path / "shard.log")],
    )
    script = str(ROOT / "scripts" / "shard.py")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(script, {"snakemake": job}, run_name="__main__")
    assert caught.value.code == 2
    check_stopped(tmp_path, capsys.readouterr().err, name)


@pytest.mark.slow
def test_the_workflow_stops_with_the_same_line(tmp_path):
    path = tmp_path / "bad.fasta"
    path.write_text(BAD_FASTA["digits"][0])
    write_config(tmp_path, fasta=str(path))
    run = snakemake(tmp_path)
    assert run.returncode != 0
    check_stopped(tmp_path, run.stdout, "digits")


BAD_CONFIG = {
    "folder": ({"fasta": {"here": "."}}, "is a folder, not a FASTA file"),
    "key": ({"modle": "x"}, "unknown config key 'modle'; did you mean 'model'?"),
    "model": ({"model": "esm2_t33_650M_UR50"}, "esm2_t33_650M_UR50D"),
}


@pytest.mark.parametrize("name", BAD_CONFIG)
def test_a_bad_config_is_refused(good, name):
    config, words = BAD_CONFIG[name]
    assert words in refusal({"fasta": str(good), **config})


# The last of the three checks; the names in test_hostile_names.py come to the other two.
def test_the_workflow_refuses_a_bad_config_before_it_starts(tmp_path, good):
    config, words = BAD_CONFIG["model"]
    write_config(tmp_path, **{"fasta": str(good), **config})
    run = snakemake(tmp_path)
    assert run.returncode != 0
    assert words in run.stdout
    assert "Traceback" not in run.stdout
    assert not (tmp_path / "results").exists()
