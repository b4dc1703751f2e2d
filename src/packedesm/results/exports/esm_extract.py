"""Results as fair-esm's ``esm-extract`` writes them: one file of tensors for each protein.

The names of the files and of what they hold, and the numbers of the layers, are those of
``scripts/extract.py`` in github.com/facebookresearch/esm (version 2.0.0).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.outputs import Array
from packedesm.progress import Progress
from packedesm.results.exports.folders import tell_size
from packedesm.results.exports.source import Source

SUFFIX = ".pt"
# Where esm-extract puts what there is of each layer, by our name of it.
LAYERED = {
    "mean": "mean_representations",
    "residue": "representations",
    "cls": "bos_representations",
}
CONTACTS = "contacts"

_FRAME = 1500  # bytes of a file besides its numbers, measured


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one folder for all arrays."""
    return {"pt": list(arrays)}


def write(path: Path, source: Source) -> None:
    """Write a file ``<key>.pt`` for each record into the new folder `path`.

    Each holds a dict: ``label``, the record's id, and of what is exported
    ``mean_representations`` {layer: (D,)}, ``representations`` {layer: (L, D)},
    ``bos_representations`` {layer: (D,)} and ``contacts`` (L, L), all in float32.
    """
    import torch

    path.mkdir()
    tell_size(path, len(source.rows), _size(source) + _FRAME * len(source.rows))
    made = {path}
    with Progress("exporting", len(source.rows), "records") as progress:
        for row, content in _contents(source):
            place = path / f"{source.keys[row]}{SUFFIX}"
            if place.parent not in made:
                place.parent.mkdir(parents=True, exist_ok=True)
                made.add(place.parent)
            file = io.BytesIO()  # of a full disk torch's own writer says only that it failed
            torch.save(content, file)
            place.write_bytes(file.getbuffer())
            progress.add(1)


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some files back as esm-extract's users do, and without running code from them."""
    import torch

    for row in rows:
        found = torch.load(path / f"{source.keys[row]}{SUFFIX}", weights_only=True)
        expected = _content(source, row, [source.at(array, row) for array in source.arrays])
        if not _same(found, expected):
            raise ValueError(f"row {row} has other numbers")


def _contents(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    for records in zip(*map(source.records, source.arrays), strict=True):
        row = records[0][0]
        yield row, _content(source, row, [lines for _, lines in records])


def _content(source: Source, row: int, lines: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return what esm-extract would save of a record with these lines of each array."""
    import torch

    content: dict[str, Any] = {"label": source.ids[row]}
    for array, values in zip(source.arrays, lines, strict=True):
        numbers = np.array(values, np.float32)  # a tensor of its own, not one into a block
        if array.output.name == CONTACTS:
            content[CONTACTS] = torch.from_numpy(square(numbers))
        else:
            layer = source.results.depth if array.layer is None else array.layer
            part = content.setdefault(LAYERED[array.output.name], {})
            part[layer] = torch.from_numpy(numbers)
    return content


def square(triangle: np.ndarray) -> np.ndarray:
    """Return (L, L), symmetric, from its L(L+1)/2 numbers on and above the diagonal by rows."""
    length = (int((8 * len(triangle) + 1) ** 0.5) - 1) // 2
    full = np.empty((length, length), triangle.dtype)
    upper = np.triu_indices(length)
    full[upper] = triangle
    full.T[upper] = triangle
    return full


def _size(source: Source) -> int:
    """Return the bytes of all numbers, of which those of pairs are written twice."""
    size = 0
    for array in source.arrays:
        lines = int(source.results.offsets(array.name)[-1])
        count = lines * int(np.prod(source.line(array), dtype=np.int64))
        size += 4 * count * (2 if array.output.name == CONTACTS else 1)
    return size


def _same(found: Any, expected: Any) -> bool:
    """Tell whether two such contents are equal, bit for bit."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            _same(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, str):
        return found == expected
    return found.dtype == expected.dtype and np.array_equal(found, expected)
