"""A few proteins that models are tried with: short, and unlike each other."""

from __future__ import annotations

from typing import Any

import torch

from packedesm.alphabet import CLS, EOS, encode

PROTEINS = {
    # All alpha, alpha and beta, and one with disulphide bonds.
    "melittin": "GIGAVLKVLTTGLPALISWIKRKRQQ",
    "ubiquitin": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "crambin": "TTCCPSIVARSNFNVCRLPGTPEALCATYTGCIIIPGATCPGDYAN",
}
PEPTIDES = {"oxytocin": "CYIQNCPLG", "bradykinin": "RPPGFSPFR"}  # as short as proteins are


def packed_proteins() -> dict[str, Any]:
    """Return all of them as one pack, as `PackedESM2.forward_packed` takes it."""
    tokens = [
        torch.tensor([CLS, *encode(sequence.encode()).tolist(), EOS])
        for sequence in (PROTEINS | PEPTIDES).values()
    ]
    lengths = [len(sequence) for sequence in tokens]
    return {
        "input_ids": torch.cat(tokens),
        "positions": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_seqlen": max(lengths),
        "lengths": lengths,
    }
