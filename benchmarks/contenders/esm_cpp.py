"""esm-cpp: ESM-2 in C++ for CPUs, float32 and int8, with packing of its own.

Only its slow path, one sequence at a time, hands out representations; the fast one,
`forward_scheduled`, hands out logits alone. The fast one is timed, and the vectors for the
accuracy come from the slow one. int8 is quantised in memory, as esm-cpp's own benchmark does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.contenders.base import Contender, Task, private_packages

private_packages("esm-cpp")

import esm_cpp  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from benchmarks.contenders.weights import hugging_face_head, hugging_face_state  # noqa: E402
from packedesm.esm2.checkpoints import load_state  # noqa: E402
from packedesm.esm2.tensor_files import load_archive  # noqa: E402


def load(task: Task, dtype: str) -> EsmCpp:
    """Hand the weights over in a safetensors file with Hugging Face's names."""
    os.environ["ESM_NUM_THREADS"] = str(task.threads)  # read when the first model is loaded
    path = task.scratch / "model.safetensors"
    state = hugging_face_state(load_state(task.checkpoint)[1])
    weights = {f"esm.{name}": tensor for name, tensor in state.items()}
    weights |= hugging_face_head(load_archive(task.checkpoint)["model"])
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    model = esm_cpp.Model.load_from_safetensors(str(path))
    if dtype == "int8":
        model.quantize_weights()
    return EsmCpp(model)


class EsmCpp(Contender):
    """All sequences in one call, which cuts them into packs."""

    packages = ("esm-cpp",)

    def __init__(self, model: esm_cpp.Model) -> None:
        self.model = model

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Tokenise; esm-cpp knows no budget."""
        encode = esm_cpp.Tokenizer().encode
        self.ids = [np.array(encode(s, truncate=False), np.int32) for s in sequences]

    def embed(self) -> None:
        """Compute the logits of all sequences."""
        self.model.forward_scheduled(self.ids)

    def vectors(self) -> np.ndarray:
        """Return the mean vectors, one sequence at a time."""
        last = [self.model.forward_with_hidden_states(ids)[1][-1] for ids in self.ids]
        return np.stack([hidden[1:-1].mean(0) for hidden in last])
