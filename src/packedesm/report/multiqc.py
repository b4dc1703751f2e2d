"""What MultiQC shows of a sample beside those of other tools: its custom content, as JSON.

One file for each section, because a file of MultiQC's is of one kind of plot. Those of several
samples have the same `id`, by which MultiQC puts them together. A sample is called by the name of
its folder, which MultiQC shortens as it does that of every other tool's (``fn_clean_exts``).

What MultiQC reads: https://docs.seqera.io/multiqc/custom_content
"""

from __future__ import annotations

from typing import Any

from packedesm.files import file_digest, write_json
from packedesm.paths import Paths

_COMMON = {
    "parent_id": "packedesm",
    "parent_name": "packedesm",
    "parent_description": "ran protein sequences through ESM-2, packed: without padding.",
}
_STATISTICS: dict[str, dict[str, Any]] = {
    "proteins": {
        "title": "Proteins",
        "description": "Proteins in the results",
        "format": "{:,.0f}",
        "min": 0,
        "scale": "Greys",
    },
    "residues_per_second": {
        "title": "Residues/s",
        "description": "Residues embedded per second, per job",
        "format": "{:,.0f}",
        "min": 0,
        "scale": "Blues",
    },
    "masked_passes_per_second": {
        "title": "Masked passes/s",
        "description": "Passes over a protein with one residue masked, per second, per job",
        "format": "{:,.0f}",
        "min": 0,
        "scale": "Blues",
    },
    "fill": {
        "title": "Fill",
        "description": "Part of the packs that holds proteins, or masked copies if all packs do",
        "suffix": "%",
        "format": "{:,.1f}",
        "min": 0,
        "max": 100,
        "scale": "Purples",
        "hidden": True,
    },
    "padding_avoided": {
        "title": "Padding avoided",
        "description": "Part of the tokens of padded batches, in file order, that packing spares",
        "suffix": "%",
        "format": "{:,.1f}",
        "min": 0,
        "max": 100,
        "scale": "Greens",
    },
    "verified": {
        "title": "Verified",
        "description": "Whether sampled results agree with fair-esm in float32",
        "cond_formatting_rules": {
            "pass": [{"s_eq": "yes"}],
            "warn": [{"s_eq": "not verified"}],
            "fail": [{"s_eq": "NO"}],
        },
    },
    "relative_l2": {
        "title": "Largest error",
        "description": "Largest relative L2 distance of a sampled result from that of fair-esm",
        "format": "{:.2e}",
        "min": 0,
        "scale": "Oranges",
    },
}
_ACCURACY = {
    "compared": {
        "title": "Compared",
        "description": "Proteins of which results were compared with fair-esm's, in float32",
        "format": "{:,.0f}",
        "scale": False,
    },
    "missed": {
        "title": "Missed",
        "description": "Comparisons that missed a limit",
        "format": "{:,.0f}",
        "min": 0,
        "scale": "Reds",
    },
    "relative_l2": {**_STATISTICS["relative_l2"]},
    "max_relative_l2": {
        "title": "Limit",
        "description": "Relative L2 distance that passes",
        "format": "{:.2e}",
        "scale": False,
    },
    "cosine": {
        "title": "Smallest cosine",
        "description": "Smallest cosine of a sampled vector with fair-esm's",
        "format": "{:.8f}",
        "max": 1,
        "scale": "Oranges-rev",
    },
    "min_cosine": {
        "title": "Limit of the cosine",
        "description": "Cosine that passes",
        "format": "{:.6f}",
        "scale": False,
        "hidden": True,
    },
    "dtype": {"title": "Computed in", "description": "Number format of the computation"},
}

_PACKING = (
    "Tokens that packing computes, of proteins and of copies of them in which a residue is masked, "
    "and that padded batches of the proteins in file order would add."
)
_TOKENS = {  # the same for every sample: MultiQC takes them from one
    "tokens": {"name": "proteins"},
    "padding": {"name": "padding that was avoided"},
    "masked": {"name": "masked copies"},
}

_TIME = "What jobs spent their time on, over all jobs of a sample."
_PHASES = {
    "embedding": {"name": "embedding"},
    "setup": {"name": "loading weights, first measurements"},
    "writing": {"name": "writing"},
    "verification": {"name": "verification and its reference"},
}


def write_multiqc(
    paths: Paths, metrics: dict[str, Any], verification: dict[str, Any]
) -> dict[str, str]:
    """Write the files that MultiQC finds by their names, and return their digests by these.

    Parameters
    ----------
    metrics, verification
        The content of ``metrics.json`` and ``verification.json``. What they do not know is left
        out.
    """
    sample = paths.root.resolve().name
    digests = {}
    for path, content in zip(
        paths.multiqc(), _sections(sample, metrics, verification), strict=True
    ):
        write_json(path, content)
        digests[path.name] = file_digest(path)
    return digests


def _sections(
    sample: str, metrics: dict[str, Any], verification: dict[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            "id": "packedesm_statistics",
            "plot_type": "generalstats",
            "namespace": "packedesm",
            "headers": _STATISTICS,
            "data": {sample: _known(_statistics(metrics, verification))},
        },
        _section("packing", _PACKING, _TOKENS, {sample: _tokens(metrics)}, "tokens"),
        _section("time", _TIME, _PHASES, {sample: _times(metrics, verification)}, "seconds"),
        {
            **_COMMON,
            "id": "packedesm_accuracy",
            "section_name": "Accuracy",
            "description": "Sampled results beside those of fair-esm, one protein at a time in "
            "float32.",
            "plot_type": "table",
            "pconfig": {
                "id": "packedesm_accuracy_table",
                "title": "packedesm: Accuracy",
                "namespace": "packedesm",
            },
            "headers": _ACCURACY,
            "data": {sample: _known(_accuracy(metrics, verification))},
        },
    ]


def _statistics(metrics: dict[str, Any], verification: dict[str, Any]) -> dict[str, Any]:
    packing, speed = metrics["packing"]["all"], metrics["throughput"]["all"]
    return {
        "proteins": metrics["records"],
        "residues_per_second": speed["residues_per_second"],
        "masked_passes_per_second": speed["masked_passes_per_second"],
        "fill": _percent(packing["fill"] if packing["tokens"] else packing["masked_fill"]),
        "padding_avoided": _percent(packing["padding_avoided_arrival"]),
        "verified": {True: "yes", False: "NO", None: "not verified"}[verification["passed"]],
        "relative_l2": verification["worst"]["relative_l2"],
    }


def _tokens(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the tokens of a bar, without kinds of passes that the run did not make."""
    packing = metrics["packing"]["all"]
    tokens, masked = packing["tokens"], packing["masked_tokens"]
    bar: dict[str, float] = {
        "tokens": tokens,
        "padding": max(0, packing["padded_tokens_arrival"] - tokens),
    }
    return (bar if tokens else {}) | ({"masked": masked} if masked else {})


def _times(metrics: dict[str, Any], verification: dict[str, Any]) -> dict[str, float]:
    jobs = [run["seconds"] for run in metrics["runs"]]
    setup, embedding, total = (
        sum(job[name] for job in jobs) for name in ("setup", "embedding", "total")
    )
    return {
        "embedding": embedding,
        "setup": setup,
        "writing": max(0.0, total - setup - embedding),
        "verification": verification["seconds"] + verification.get("reference_seconds", 0.0),
    }


def _accuracy(metrics: dict[str, Any], verification: dict[str, Any]) -> dict[str, Any]:
    worst = verification["worst"]
    return {
        "compared": verification["sequences"],
        "missed": sum(not record["passed"] for record in verification["records"]),
        "relative_l2": worst["relative_l2"],
        "max_relative_l2": verification["max_relative_l2"],
        "cosine": worst["cosine"],
        "min_cosine": verification["min_cosine"],
        "dtype": ", ".join(dict.fromkeys(run["plan"]["dtype"] for run in metrics["runs"])),
    }


def _section(
    name: str,
    description: str,
    categories: dict[str, dict[str, str]],
    data: dict[str, dict[str, float]],
    unit: str,
) -> dict[str, Any]:
    """Return a section with a bar for each sample."""
    return {
        **_COMMON,
        "id": f"packedesm_{name}",
        "section_name": name.capitalize(),
        "description": description,
        "plot_type": "bargraph",
        "categories": categories,
        "pconfig": {
            "id": f"packedesm_{name}_plot",
            "title": f"packedesm: {name.capitalize()}",
            "ylab": unit,
        },
        "data": data,
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
