"""FAESM: Hugging Face's ESM-2 on flash_attn, or on torch's attention where that is missing."""

from __future__ import annotations

import contextlib
import io

from benchmarks.contenders.base import Task, private_packages

private_packages("faesm")

import torch  # noqa: E402

with contextlib.redirect_stdout(io.StringIO()):  # it prints that flash_attn is missing
    from faesm.esm import FAEsmModel

from benchmarks.contenders import hugging_face  # noqa: E402


def load(task: Task, dtype: str) -> hugging_face.HuggingFace:
    """Put the checkpoint's weights into an FAEsmModel."""
    model = hugging_face.build(FAEsmModel, task, dtype, "eager", use_fa=task.device == "cuda")
    # With torch's attention it computes in one dtype only, rotary frequencies included.
    contender = hugging_face.HuggingFace(task.device, model.to(getattr(torch, dtype)))
    contender.packages = ("torch", "transformers", "faesm")
    return contender
