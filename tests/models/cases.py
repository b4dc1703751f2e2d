"""What those who write models share: weights that tell everything apart, sequences, vectors.

Loaded beside other libraries than ours: of packedesm it knows nothing.
"""

import random
from collections.abc import Callable
from pathlib import Path

import esm
import numpy as np
import torch

LETTERS = "LAGVSERTIDPKQNFYMHWCXBZUO"
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")


def sequences() -> list[str]:
    """Return proteins of several lengths, the longest far beyond where rotary phases are small."""
    chance = random.Random(14)
    return ["".join(chance.choices(LETTERS, k=length)) for length in (1, 23, 80, 700)]


def randomise(model, seed: int):
    """Fill the parameters of a model, or those of an adapter, so that none can be left out unseen.

    They are as large as leaves activations of ordinary size: sharp attention would magnify what
    rounding differs, in any library.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model if isinstance(model, list) else model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() > 1:
                few = min(noise.shape) < 10  # of an adapter, whose products are added to others
                parameter.copy_(noise * (0.2 if few else parameter.shape[-1] ** -0.5))
            else:
                parameter.copy_(0.2 * noise + (parameter == 1))
    return model


def save_vectors(folder: Path, name: str, vectors: Callable) -> None:
    """Write (length, width) of every sequence; `vectors` takes tokens (1, length + 2)."""
    target = folder / "vectors" / f"{name}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    with torch.inference_mode():
        for sequence in sequences():
            tokens = torch.tensor([[0, *ALPHABET.encode(sequence), 2]])
            found[sequence] = vectors(tokens)[0, 1:-1].float().numpy()
    np.savez(target, **found)


def save_heads(folder: Path, name: str, heads: Callable) -> None:
    """Write what both heads say of every sequence.

    `heads` takes tokens (1, length + 2) and returns logits (1, length + 2, 33) and contacts
    (1, length, length).
    """
    target = folder / "heads" / f"{name}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    with torch.inference_mode():
        for sequence in sequences():
            logits, contacts = heads(torch.tensor([[0, *ALPHABET.encode(sequence), 2]]))
            found[f"logits {sequence}"] = logits[0, 1:-1].numpy()
            found[f"contacts {sequence}"] = contacts[0].numpy()
    np.savez(target, **found)
