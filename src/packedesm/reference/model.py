"""The reference: fair-esm, unmodified, float32, one protein at a time."""

from __future__ import annotations

import warnings
from contextlib import suppress
from math import inf
from pathlib import Path

import esm
import numpy as np
import torch

from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import is_published
from packedesm.esm2.tensor_files import load_archive
from packedesm.reference.blocked_attention import blocked

# Peak memory over the numbers of all tokens' vectors: fair-esm's GELU holds four times four of
# them, the residual stream, q, k, v and the result six more, and they are pooled in float64.
_BYTES_PER_NUMBER = 100


class DoesNotFitError(Exception):
    """The memory of this machine does not hold the reference of a protein."""


class Reference:
    """fair-esm's ESM2 with the weights of one checkpoint, on the CPU.

    The attention of long proteins works in blocks, see `packedesm.reference.blocked_attention`.

    Parameters
    ----------
    path
        A .pt file in fair-esm's layout, loaded by fair-esm itself, or weights in another layout,
        which are put into fair-esm's model.
    base
        As `packedesm.esm2.checkpoints.read` takes it.

    Raises
    ------
    UserError
        If the checkpoint cannot be read or does not fit.
    """

    def __init__(self, path: Path, base: str | Path | None = None) -> None:
        self._model = _model(Path(path), base).eval()
        self._converter = self._model.alphabet.get_batch_converter()

    def residues(self, sequence: bytes | str) -> np.ndarray:
        """Return the last representation of every residue, float32 (length, width)."""
        return self.representation(sequence)[1:-1]

    @torch.inference_mode()
    def representation(self, sequence: bytes | str) -> np.ndarray:
        """Return the last representation of every token, float32 (length + 2, width).

        The first row is that of ``<cls>``, the last that of ``<eos>``.

        Parameters
        ----------
        sequence
            Residue letters; a str may hold fair-esm's ``<mask>``.

        Raises
        ------
        DoesNotFitError
            If the memory does not hold it.
        """
        text = sequence.decode("ascii") if isinstance(sequence, bytes) else sequence
        _, _, tokens = self._converter([("", text)])
        if tokens.shape[1] * self._model.embed_dim * _BYTES_PER_NUMBER > available_bytes():
            raise DoesNotFitError  # the system would rather kill this process than refuse
        layer = self._model.num_layers
        try:
            with blocked(self._model, tokens.shape[1]):
                result = self._model(tokens, repr_layers=[layer])
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise DoesNotFitError from error
        return result["representations"][layer][0].numpy()


def available_bytes() -> float:
    """Return the memory that this process may still take; infinity where Linux does not tell."""
    found = [inf]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # of its control group (v2) and those around it
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::/")[2]
        for part in [Path(group), *Path(group).parents]:
            folder = Path("/sys/fs/cgroup") / part
            with suppress(OSError, ValueError):  # "max", or the root
                limit = int((folder / "memory.max").read_text())
                found.append(limit - int((folder / "memory.current").read_text()))
    return min(found)


def _model(path: Path, base: str | Path | None) -> esm.ESM2:
    geometry, state = load_state(path, base)  # checked: fair-esm's errors are tracebacks
    content = None if path.is_dir() else load_archive(path)
    if is_published(content):
        with warnings.catch_warnings():
            # Contacts are not asked for, so their weights are not needed.
            warnings.filterwarnings("ignore", message="Regression weights not found")
            # fair-esm tells ESM-2 from its older models by the beginning of the name.
            return esm.pretrained.load_model_and_alphabet_core("esm2", content)[0]
    model = esm.ESM2(geometry.layers, geometry.width, geometry.heads)
    # The heads are not read, and not used; `load_state` has checked the rest.
    model.load_state_dict(state, strict=False)
    return model
