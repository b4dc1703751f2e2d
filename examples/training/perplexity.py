"""How well hidden residues of unseen proteins are predicted: by the model, and by counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from masking import STANDARD, mask
from packs import packs
from training import predict

from packedesm.alphabet import CLS, encode
from packedesm.esm2.geometry import VOCABULARY
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2

RESAMPLES = 1000


class Counts:
    """Unigram and bigram frequencies of the 20 standard residues, every count one too high."""

    def __init__(self, sequences: Sequence[bytes]) -> None:
        pairs = np.ones((VOCABULARY, VOCABULARY))
        for sequence in sequences:
            residues = encode(sequence).astype(np.int64)
            np.add.at(pairs, (np.concatenate(([CLS], residues[:-1])), residues), 1)
        others = np.setdiff1d(np.arange(VOCABULARY), STANDARD)
        pairs[:, others] = 0  # never asked for
        self._unigram = pairs.sum(0) / pairs.sum()
        self._bigram = pairs / pairs.sum(1, keepdims=True)

    def losses(self, left: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Return -ln p of each answer: alone, and after the token at its left.

        Parameters
        ----------
        left, answers
            int64 (K,), token ids.
        """
        return {
            "unigram": -np.log(self._unigram[answers]),
            "bigram": -np.log(self._bigram[left, answers]),
        }


def hidden_residue_losses(
    encoder: PackedESM2,
    head: LanguageModelHead,
    counts: Counts,
    sequences: Sequence[bytes],
    seed: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Hide 15% of the residues of each sequence and predict them.

    All chosen residues are shown as ``<mask>``, none is left or swapped. The bigram sees the true
    left neighbour even where the model sees ``<mask>``; the model chooses among all 33 tokens.

    Returns
    -------
    dict, array
        -ln p of each of K hidden residues by predictor, and which sequence each belongs to.
    """
    losses: dict[str, list[np.ndarray]] = {"model": [], "unigram": [], "bigram": []}
    owners = []
    generator = np.random.default_rng(seed)
    for items, batch in packs(sequences):
        task = mask(batch, generator, masked=1.0, swapped=0.0)
        with torch.inference_mode():
            logits = predict(encoder, head, task.batch, task.places)
            losses["model"].append(F.cross_entropy(logits, task.answers, reduction="none").numpy())
        counted = counts.losses(batch.input_ids[task.places - 1].numpy(), task.answers.numpy())
        for name, values in counted.items():
            losses[name].append(values)
        segment = np.searchsorted(batch.cu_seqlens.numpy(), task.places.numpy(), side="right") - 1
        owners.append(items[segment])
    return {name: np.concatenate(x) for name, x in losses.items()}, np.concatenate(owners)


def perplexities(
    losses: dict[str, np.ndarray], groups: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """Return perplexity by predictor, and the model's over it, each with its 95% interval.

    The interval of the ratio is the one to compare by: some proteins are harder for every
    predictor, which widens the other intervals together.

    Parameters
    ----------
    losses
        -ln p of each of K residues, by predictor, ``model`` among them.
    groups
        (K,): the cluster of relatives that each residue belongs to. Clusters are resampled, since
        residues of relatives are not independent.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), RESAMPLES)

    def interval(values: np.ndarray) -> list[float]:
        resampled = np.exp(draws @ np.bincount(group, values) / (draws @ sizes))
        return [float(bound) for bound in np.percentile(resampled, [2.5, 97.5])]

    return {
        name: {
            "perplexity": float(np.exp(values.mean())),
            "interval": interval(values),
            "model_over_it": float(np.exp((losses["model"] - values).mean())),
            "model_over_it_interval": interval(losses["model"] - values),
        }
        for name, values in losses.items()
    }
