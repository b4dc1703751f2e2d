"""Models and packs on the made-up GPU; called below FakeTensorMode."""

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein


def fake_model(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> PackedESM2:
    model = PackedESM2(geometry)
    weights = {
        # The frequencies are bits, in any model.
        name: x.new_empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device=device)
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


def fake_pack(
    windows: list[list[tuple[int, int]]], device: torch.device, masked: int | None = None
) -> PackedBatch:
    """Return a pack of records with these windows of residues each.

    Or of copies of them, in which the residue at the place `masked` is.
    """
    proteins = [
        Protein(row, b"A" * max(end for _, end in spans), spans, masked)
        for row, spans in enumerate(windows)
    ]
    with unset_fake_temporarily():
        batch = VarlenCollator()(proteins)
    numbers = torch.empty(batch.numbers.shape, dtype=batch.numbers.dtype, device=device)
    return replace(batch, numbers=numbers)


def whole(*residues: int) -> list[list[tuple[int, int]]]:
    """Return the windows of records of so many residues that go through the model as they are."""
    return [[(0, length)] for length in residues]
