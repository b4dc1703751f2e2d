"""A paragraph for the methods section of a paper, and what it cites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packedesm.errors import plural
from packedesm.outputs import CONTACT_HEAD, LANGUAGE_HEAD, Array
from packedesm.report.words import OUTPUTS, scientific

_ESM2 = (
    "Lin Z, Akin H, Rao R, et al. Evolutionary-scale prediction of atomic-level protein structure "
    "with a language model. Science 379, 1123-1130 (2023). doi:10.1126/science.ade2574"
)
_SNAKEMAKE = (
    "Mölder F, Jablonski KP, Letcher B, et al. Sustainable data analysis with Snakemake. "
    "F1000Research 10, 33 (2021). doi:10.12688/f1000research.29032.2"
)
_FLASH_2 = (
    "Dao T. FlashAttention-2: faster attention with better parallelism and work partitioning. "
    "ICLR (2024). arXiv:2307.08691"
)
_FLASH_3 = (
    "Shah J, Bikshandi G, Zhang Y, et al. FlashAttention-3: fast and accurate attention with "
    "asynchrony and low-precision. NeurIPS (2024). arXiv:2407.08608"
)
_MARGINALS = (
    "Meier J, Rao R, Verkuil R, et al. Language models enable zero-shot prediction of the effects "
    "of mutations on protein function. NeurIPS (2021). doi:10.1101/2021.07.09.450648"
)
_PERPLEXITY = (
    "Salazar J, Liang D, Nguyen TQ, Kirchhoff K. Masked language model scoring. ACL, 2699-2712 "
    "(2020). doi:10.18653/v1/2020.acl-main.240"
)
_CONTACTS = (
    "Rao R, Meier J, Sercu T, Ovchinnikov S, Rives A. Transformer protein language models are "
    "unsupervised structure learners. ICLR (2021). doi:10.1101/2020.12.15.422761"
)
_APC = (
    "Dunn SD, Wahl LM, Gloor GB. Mutual information without the influence of phylogeny or entropy "
    "dramatically improves residue contact prediction. Bioinformatics 24, 333-340 (2008). "
    "doi:10.1093/bioinformatics/btm604"
)
# Attention by others, as it is cited, by the name of the backend.
_ATTENTION = {
    "flash_attn": ("FlashAttention-2 (Dao 2024)", _FLASH_2),
    "torch_varlen": ("FlashAttention-2 in PyTorch (Dao 2024)", _FLASH_2),
    "fa3": ("FlashAttention-3 (Shah et al. 2024)", _FLASH_3),
}
# What papers define, as they are cited, by the name of the output.
_CITED = {
    "masked_marginals": (" (Meier et al. 2021)", _MARGINALS),
    "pseudo_perplexity": (", their pseudo-perplexity (Salazar et al. 2020)", _PERPLEXITY),
    "contacts": ("", _CONTACTS, _APC),
}
_REPLACED = {"stop_replaced": "stop codons inside", "j_replaced": "J"}


def methods(metrics: dict[str, Any], verification: dict[str, Any], *, workflow: bool) -> str:
    """Return the paragraph and, below it, the references, as plain text.

    Parameters
    ----------
    metrics, verification
        The content of ``metrics.json`` and ``verification.json``.
    workflow
        Whether Snakemake ran the steps.
    """
    sentences = [
        _model(metrics),
        _program(metrics, workflow),
        *_outputs(metrics),
        *_sequences(metrics),
        _verified(verification),
    ]
    references = [
        _ESM2,
        f"{_software(metrics)}: ESM-2 embeddings of proteins by packed inference. Software.",
    ]
    references += [_SNAKEMAKE] if workflow else []
    cited = [_ATTENTION[name][1] for name in _distinct(metrics, "attention") if name in _ATTENTION]
    for array in _arrays(metrics):
        cited += _CITED.get(array.output.name, ("",))[1:]
    return "\n\n".join([" ".join(sentences), *references, *dict.fromkeys(cited)])


def _model(metrics: dict[str, Any]) -> str:
    model = metrics["model"]
    of = "" if model["digest_checked"] else "a model of the architecture of "
    weights = "random weights" if model["untrained"] else "weights"
    vectors = any(array.output.layered for array in _arrays(metrics))
    what = "Embeddings of" if vectors else "Predictions for"
    return (
        f"{what} {plural(metrics['records'], 'protein sequence')} were computed with {of}"
        f"ESM-2 (Lin et al. 2023): {model['model']}, {model['layers']} layers, "
        f"{model['parameters']:,} parameters, {weights} with SHA-256 {model['sha256']}."
    )


def _program(metrics: dict[str, Any], workflow: bool) -> str:
    attention = [
        _ATTENTION[name][0] if name in _ATTENTION else name
        for name in _distinct(metrics, "attention")
    ]
    dtypes = " and ".join(_distinct(metrics, "dtype"))
    devices = " and ".join(dict.fromkeys(run["device"]["name"] for run in metrics["runs"]))
    by = (
        f", run by Snakemake {_version(metrics, 'snakemake')} (Mölder et al. 2021),"
        if workflow
        else ""
    )
    return (
        f"{_software(metrics)}{by} passed them through the model in packs without padding, in "
        f"{dtypes}, with PyTorch {_version(metrics, 'torch')} on {devices} "
        f"(attention: {' and '.join(attention)})."
    )


def _arrays(metrics: dict[str, Any]) -> list[Array]:
    return [Array.named(name) for name in metrics["arrays"]]


def _outputs(metrics: dict[str, Any]) -> list[str]:
    """Say what there is, and what of the model it comes from."""
    arrays, said = _arrays(metrics), []
    if vectors := [array for array in arrays if array.output.layered]:
        said.append(
            f"Vectors of {metrics['model']['width']:,} numbers are from its {_layers(vectors)}: "
            f"{_words(vectors)}."
        )
    if language := [array for array in arrays if array.output.needs == LANGUAGE_HEAD]:
        logarithms = " (natural logarithms of probabilities among all 33 tokens)"
        said.append(
            f"Its language head gave: {_words(language)}"
            f"{logarithms if any(a.output.name != 'logits' for a in language) else ''}."
        )
    if any(array.output.needs == CONTACT_HEAD for array in arrays):
        said.append(
            "Contacts were predicted from its attention maps, symmetrised and with the average "
            "product correction (Dunn et al. 2008), by its logistic regression (Rao et al. 2021)."
        )
    return said


def _words(arrays: Iterable[Array]) -> str:
    names = dict.fromkeys(array.output.name for array in arrays)
    return "; ".join(OUTPUTS[name] + (_CITED[name][0] if name in _CITED else "") for name in names)


def _layers(vectors: Iterable[Array]) -> str:
    layers = [*dict.fromkeys(array.layer for array in vectors)]
    if layers == [None]:
        return "last layer"
    embeddings = " (the embeddings)"
    names = ["the last" if n is None else f"{n}{'' if n else embeddings}" for n in layers]
    if len(layers) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"


def _sequences(metrics: dict[str, Any]) -> list[str]:
    flags, limit = metrics["flags"], f"{metrics['max_length']:,} residues"
    said = []
    if count := flags.get("truncated"):
        said.append(f"Sequences longer than {limit} ({count:,}) were cut there.")
    if count := flags.get("windowed"):
        said.append(
            f"Sequences longer than {limit} ({count:,}) were embedded in windows of {limit} that "
            f"share at least {metrics['window_overlap']:,}, and averaged where these overlap."
        )
    for flag, what in _REPLACED.items():
        if count := flags.get(flag):
            said.append(f"In {plural(count, 'sequence')} {what} became X.")
    return said


def _verified(verification: dict[str, Any]) -> str:
    if not verification["records"]:
        return "The results were not verified."
    worst = verification["worst"]
    found = ", ".join(
        [f"largest relative L2 distance {scientific(worst['relative_l2'])}"]
        + ([] if worst["cosine"] is None else [f"smallest cosine {worst['cosine']:.6f}"])
    )
    failed = "" if verification["passed"] else " The verification failed."
    return (
        f"Of these, {plural(verification['sequences'], 'protein')} "
        f"{'was' if verification['sequences'] == 1 else 'were'} computed again with "
        f"{verification['reference']}: {found}.{failed}"
    )


def _software(metrics: dict[str, Any]) -> str:
    return f"packedesm {_version(metrics, 'packedesm')}"


def _version(metrics: dict[str, Any], package: str) -> str:
    found = dict.fromkeys(run["versions"].get(package, "unknown") for run in metrics["runs"])
    return " and ".join(found)


def _distinct(metrics: dict[str, Any], choice: str) -> list[str]:
    return list(dict.fromkeys(run["plan"][choice] for run in metrics["runs"]))
