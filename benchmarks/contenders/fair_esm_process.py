"""FASTA to a file of mean vectors with fair-esm, as one would write it: a whole process.

python fair_esm_process.py CHECKPOINT FASTA TOKENS OUT

Sorted by length into padded batches of at most so many tokens. It imports nothing of packedesm.
"""

import argparse
import sys
from pathlib import Path

import esm
import numpy as np
import torch


def read_fasta(path: str) -> list[str]:
    """Return the sequences."""
    records = Path(path).read_text().split(">")[1:]
    return ["".join(record.split("\n")[1:]) for record in records]


def main(checkpoint: str, fasta: str, tokens: str, out: str) -> None:
    """Embed."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        archive = torch.load(checkpoint, map_location="cpu", mmap=True)
    model, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2", archive)
    model.eval()
    sequences = read_fasta(fasta)
    batches: list[list[int]] = []
    longest = 0
    for item in sorted(range(len(sequences)), key=lambda item: -len(sequences[item])):
        if batches and (len(batches[-1]) + 1) * longest <= int(tokens):
            batches[-1].append(item)
        else:
            batches.append([item])
            longest = len(sequences[item]) + 2
    convert = alphabet.get_batch_converter()
    vectors = np.empty((len(sequences), model.embed_dim), np.float32)
    with torch.inference_mode():
        for batch in batches:
            _, _, ids = convert([("", sequences[item]) for item in batch])
            hidden = model(ids, repr_layers=[model.num_layers])["representations"][model.num_layers]
            for row, item in zip(hidden, batch, strict=True):
                vectors[item] = row[1 : len(sequences[item]) + 1].mean(0).numpy()
    np.save(out, vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
