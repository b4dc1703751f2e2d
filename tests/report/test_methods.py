import pytest

from packedesm.files import read_record
from packedesm.report.methods import methods
from tests.report.finished_run import FASTA, measured, record
from tests.typed import checkpoint

VERSIONS = {"packedesm": "0.1.0", "torch": "2.13.0", "snakemake": "9.27.1"}


def paragraph(root, *, workflow=False, records=(), passed=True, run=None, **config) -> str:
    run = {"versions": VERSIONS} | (run or {})
    paths = measured(root, records=[*records], passed=passed, run=run, **config)
    metrics, verification = read_record(paths.metrics), read_record(paths.verification)
    return methods(metrics, verification, workflow=workflow)


def test_the_paragraph_says_what_was_done_and_cites_it(tmp_path):
    text = paragraph(tmp_path, records=[record()])
    assert text.split("\n\n") == [
        "Embeddings of 4 protein sequences were computed with ESM-2 (Lin et al. 2023): "
        "esm2_t6_8M_UR50D, 6 layers, 7,408,960 parameters, weights with SHA-256 "
        f"{'0' * 64}. packedesm 0.1.0 passed them through the model in packs without padding, in "
        "float32, with PyTorch 2.13.0 on a processor (attention: sdpa). Vectors of 320 numbers are "
        "from its last layer: the mean over the residues of each protein. Sequences longer than "
        "60 residues (1) were cut there. Of these, 1 protein was computed again with fair-esm: "
        "largest relative L2 distance 2 \N{MULTIPLICATION SIGN} 10⁻⁷, smallest cosine 1.000000.",
        "Lin Z, Akin H, Rao R, et al. Evolutionary-scale prediction of atomic-level protein "
        "structure with a language model. Science 379, 1123-1130 (2023). "
        "doi:10.1126/science.ade2574",
        "packedesm 0.1.0: ESM-2 embeddings of proteins by packed inference. Software.",
    ]


def test_layers_and_heads_are_named_and_cited(tmp_path):
    arrays = ("mean.layer0", "mean.layer3", "mean", "residue.layer0", "residue.layer3", "residue")
    arrays += ("logits", "log_likelihood", "masked_marginals", "pseudo_perplexity", "contacts")
    text = paragraph(tmp_path, records=[record()], run={"arrays": arrays})
    assert (
        "Vectors of 320 numbers are from its layers 0 (the embeddings), 3 and the last: the mean "
        "over the residues of each protein; one vector per residue, the proteins back to back. Its "
        "language head gave: the logits"
    ) in text
    for cited in (
        "(Meier et al. 2021)",
        "(Salazar et al. 2020)",
        "(natural logarithms of probabilities among all 33 tokens)",
        "the average product correction (Dunn et al. 2008), by its logistic regression (Rao et al.",
    ):
        assert text.count(cited) == 1
    references = text.split("\n\n")[1:]
    for doi in (
        "10.1101/2021.07.09.450648",
        "10.18653/v1/2020.acl-main.240",
        "10.1101/2020.12.15.422761",
        "10.1093/bioinformatics/btm604",
    ):
        assert sum(doi in reference for reference in references) == 1


def test_one_layer_and_no_vectors_are_named_as_they_are(tmp_path):
    text = paragraph(tmp_path / "one", run={"arrays": ("mean.layer3",)})
    assert "Vectors of 320 numbers are from its layer 3: the mean" in text
    text = paragraph(tmp_path / "none", run={"arrays": ("logits",)})
    assert "Vectors of" not in text
    assert "natural logarithms" not in text
    assert "Meier" not in text


def test_snakemake_is_cited_where_it_ran_the_steps(tmp_path):
    text = paragraph(tmp_path, workflow=True)
    assert "run by Snakemake 9.27.1 (Mölder et al. 2021), passed them" in text
    assert "doi:10.12688/f1000research.29032.2" in text


@pytest.mark.parametrize(
    ("attention", "named", "cited"),
    [
        ("varlen_cpu", "attention: varlen_cpu", None),
        ("torch_varlen", "FlashAttention-2 in PyTorch (Dao 2024)", "arXiv:2307.08691"),
        ("flash_attn", "FlashAttention-2 (Dao 2024)", "arXiv:2307.08691"),
        ("fa3", "FlashAttention-3 (Shah et al. 2024)", "arXiv:2407.08608"),
    ],
)
def test_attention_is_cited_as_it_was_computed(tmp_path, attention, named, cited):
    text = paragraph(tmp_path, run={"attention": attention})
    assert named in text
    assert text.count("arXiv") == (cited is not None)
    assert cited is None or cited in text


def test_what_changed_the_sequences_or_the_vectors_is_said(tmp_path):
    text = paragraph(
        tmp_path,
        fasta=FASTA + ">e\nMK*VJ\n",
        long_sequences="window",
        records=[record(relative_l2=None, cosine=None, passed=False)],
        passed=False,
        run={"checkpoint": checkpoint(untrained=True, digest_checked=False)},
    )
    assert "with a model of the architecture of ESM-2 (Lin et al. 2023)" in text
    assert "random weights with SHA-256" in text
    assert "(1) were embedded in windows of 60 residues that share at least 20, and" in text
    assert "In 1 sequence stop codons inside became X. In 1 sequence J became X." in text
    assert "The verification failed." in text


def test_vectors_that_were_not_verified_are_not_said_to_be(tmp_path):
    assert "The results were not verified." in paragraph(tmp_path)
