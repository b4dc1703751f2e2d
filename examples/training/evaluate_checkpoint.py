"""Evaluate the small checkpoint on the proteins that training did not see.

Writes the figures as JSON, and as tables into the model card, between its two markers.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from corpus import Entry, HeldOut, read_entries, read_held_out
from neighbours import agreement, chance, compositions, family, mean_vectors, queries
from perplexity import Counts, hidden_residue_losses, perplexities
from training import initial_weights

from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import DEMO, locate
from packedesm.esm2.tensor_files import load_archive
from packedesm.files import file_digest, write_json, write_text

MARKED = re.compile(r"(<!-- results -->\n).*(<!-- end of results -->)", re.DOTALL)


def main() -> None:
    """Read the options, evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fasta", type=Path, required=True, help="UniProt proteins")
    parser.add_argument("--held-out", type=Path, required=True, help="from split_corpus.py")
    parser.add_argument("--checkpoint", type=Path, default=locate(DEMO))
    parser.add_argument("--json", type=Path, required=True, help="figures to write")
    parser.add_argument("--card", type=Path, help="model card whose tables to replace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    entries, listed = read_entries(options.fasta), read_held_out(options.held_out)
    training = [entry.sequence for entry in entries if entry.accession not in listed]
    unrelated = {name: row for name, row in listed.items() if row.relatives != "close"}
    held_out = [entry for entry in entries if entry.accession in unrelated]
    figures = {
        "checkpoint": {"name": DEMO, "sha256": file_digest(options.checkpoint)},
        "seed": options.seed,
        "training_proteins": len(training),
        "held_out_proteins": len(held_out),
        "left_out_with_close_relatives": len(listed) - len(held_out),
        **evaluate(options.checkpoint, training, held_out, unrelated, options.seed),
    }
    write_json(options.json, figures)
    print(tables(figures))
    if options.card:
        card = options.card.read_text()
        write_text(options.card, MARKED.sub(lambda m: m[1] + tables(figures) + m[2], card))


def evaluate(
    checkpoint: Path,
    training: list[bytes],
    held_out: list[Entry],
    listed: dict[str, HeldOut],
    seed: int,
) -> dict:
    """Return perplexities and agreement of nearest neighbours on `held_out`."""
    geometry, state = load_state(checkpoint)
    encoder = PackedESM2.from_fair_esm(state, geometry)
    head = LanguageModelHead.from_fair_esm(load_archive(checkpoint)["model"])
    untrained = PackedESM2.from_fair_esm(initial_weights(geometry, seed)[0], geometry)
    sequences = [entry.sequence for entry in held_out]
    losses, owners = hidden_residue_losses(encoder, head, Counts(training), sequences, seed)
    vectors = {
        "model": mean_vectors(encoder, sequences),
        "untrained": mean_vectors(untrained, sequences),
        "composition": compositions(sequences),
    }
    rows = [listed[entry.accession] for entry in held_out]
    clusters = np.array([row.cluster for row in rows])
    alone = np.array([row.relatives == "none" for row in rows])
    names = np.array([family(entry.name) or "" for entry in held_out])
    told = names != ""
    return {
        "prediction": {
            "all": prediction(losses, owners, clusters, alone | True, seed),
            "no relative found": prediction(losses, owners, clusters, alone, seed),
        },
        "neighbours": {
            "name": agreements({kind: x[told] for kind, x in vectors.items()}, names[told]),
            "cluster": agreements(vectors, clusters),
        },
    }


def prediction(
    losses: dict[str, np.ndarray],
    owners: np.ndarray,
    clusters: np.ndarray,
    chosen: np.ndarray,
    seed: int,
) -> dict:
    """Return perplexities on the `chosen` proteins, bool (N,); see `hidden_residue_losses`."""
    counted = chosen[owners]
    return {
        "proteins": int(chosen.sum()),
        "clusters": len(set(clusters[chosen])),
        "hidden_residues": int(counted.sum()),
        "perplexity": perplexities(
            {name: values[counted] for name, values in losses.items()},
            clusters[owners][counted],
            seed,
        ),
    }


def agreements(vectors: dict[str, np.ndarray], labels: np.ndarray) -> dict:
    """Return how often the nearest neighbour has the same label, by kind of vector."""
    return {
        "candidates": len(labels),
        "queries": int(queries(labels).sum()),
        "chance": chance(labels),
        **{
            name: {
                "raw": agreement(rows, labels, centred=False),
                "centred": agreement(rows, labels, centred=True),
            }
            for name, rows in vectors.items()
        },
    }


def tables(figures: dict) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| relatives in training | proteins | clusters | hidden residues "
        "| model | bigram | unigram | model / bigram |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    texts = {"all": "none that is close", "no relative found": "none found at all"}
    for part, text in texts.items():
        row = figures["prediction"][part]
        counts = [f"{row[what]:,}" for what in ("proteins", "clusters", "hidden_residues")]
        found = row["perplexity"]
        cells = [f"{found[name]['perplexity']:.2f}" for name in ("model", "bigram", "unigram")]
        low, high = found["bigram"]["model_over_it_interval"]
        ratio = f"{found['bigram']['model_over_it']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {' | '.join([text, *counts, *cells, ratio])} |")
    lines += [
        "",
        "| nearest neighbour has the same | queries | of | model | model before training "
        "| composition | chance |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds = ("model", "untrained", "composition")
    for label, text in (("name", "name in UniProt"), ("cluster", "cluster at 30% identity")):
        row = figures["neighbours"][label]
        for how, note in (("raw", ""), ("centred", ", mean subtracted")):
            cells = [f"{row[kind][how]:.1%}" for kind in kinds]
            cells = [f"{row['queries']}", f"{row['candidates']}", *cells, f"{row['chance']:.1%}"]
            lines.append(f"| {text}{note} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
