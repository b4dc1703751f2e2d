"""How a model's products are made int8, kept in the user's cache folder for the next job.

To find it out takes a pass in float32 and several products of every weight; to keep it, a file of a
hundredth of the weights. The same weights on the same kind of machine come to the same, so what is
kept changes no bit.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from packedesm.errors import Fault
from packedesm.esm2 import int8, kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.measured import measured_folder
from packedesm.esm2.proteins import PEPTIDES, PROTEINS
from packedesm.esm2.residual import PRODUCTS
from packedesm.esm2.ways import Product, Way
from packedesm.files import atomic_path

logger = logging.getLogger(__name__)

_VERSION = 1  # to be raised where the same kernels and proteins would come to something else
_KEPT = "float"  # which kinds of products stay float, in the order of `PRODUCTS`
_DIGEST_BYTES = hashlib.sha256().digest_size


class Calibration(NamedTuple):
    """How the products of a model are made int8.

    Attributes
    ----------
    ways
        The better way of each product.
    kept
        Kinds of products that stay float.
    """

    ways: Mapping[Product, Way]
    kept: tuple[str, ...]


def read_calibration(weights: str, geometry: Geometry) -> Calibration | None:
    """Return what `write_calibration` kept of these weights, None where that cannot be read.

    Parameters
    ----------
    weights
        Digest of the weights.
    geometry
        The model's.
    """
    try:
        content = _file(weights, geometry).read_bytes()
        body = content[:-_DIGEST_BYTES]
        if content != body + hashlib.sha256(body).digest():
            return None
        return _unpacked(safetensors.torch.load(body), geometry)
    except (OSError, RuntimeError, KeyError, SafetensorError):
        return None


def write_calibration(weights: str, geometry: Geometry, found: Calibration) -> None:
    """Keep how these weights are made int8; where that fails it is found out again next time."""
    tensors = {_KEPT: torch.tensor([kind in found.kept for kind in PRODUCTS])}
    for product, way in found.ways.items():
        name = ".".join(map(str, product))
        tensors[f"{name}.error"] = torch.tensor(way.error, dtype=torch.float64)
        tensors[f"{name}.bias"] = way.bias.contiguous()
        if way.smoothing is not None:
            tensors[f"{name}.smoothing"] = way.smoothing.contiguous()
    body = safetensors.torch.save(tensors)
    try:
        with atomic_path(_file(weights, geometry)) as temporary:
            temporary.write_bytes(body + hashlib.sha256(body).digest())
    except (OSError, Fault, RuntimeError) as error:  # the last: no home
        logger.info("how the products were made int8 is not remembered: %s", error)


def _unpacked(tensors: Mapping[str, torch.Tensor], geometry: Geometry) -> Calibration:
    ways = {}
    for layer in range(geometry.layers):
        for kind in PRODUCTS:
            name = f"{layer}.{kind}"
            smoothing = tensors.get(f"{name}.smoothing")
            way = Way(float(tensors[f"{name}.error"]), smoothing, tensors[f"{name}.bias"])
            ways[Product(layer, kind)] = way
    kept = zip(PRODUCTS, tensors[_KEPT].tolist(), strict=True)
    return Calibration(ways, tuple(kind for kind, is_kept in kept if is_kept))


def _file(weights: str, geometry: Geometry) -> Path:
    """Return where it is kept: under the digest of all that decides the bits."""
    parts = [
        *(str(_VERSION), str(PROTEINS | PEPTIDES), weights, str(geometry), torch.__version__),
        *(torch.backends.cpu.get_cpu_capability(), str(kernels.float_dtype(geometry.head_dim))),
        *(int8.source_digest(), kernels.source_digest()),
    ]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return measured_folder() / "int8" / f"{name}.safetensors"
