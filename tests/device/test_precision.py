"""Products on a GPU are as exact in a container that says otherwise as anywhere else."""

import json
import os
import subprocess
import sys

import torch

from packedesm.device.precision import fixed_precision

ASK = """
import ctypes, json, torch
from packedesm.device.precision import fix_precision
matmul, getenv = torch.backends.cuda.matmul, ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
before = matmul.allow_tf32
matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"  # the newer way to say it
matmul.allow_fp16_accumulation = True
said = fix_precision()
print(json.dumps({
    "before": before,
    "said": said,
    "float32": [matmul.allow_tf32, torch.backends.cudnn.allow_tf32, matmul.fp32_precision],
    "half": [
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
    ],
    # As cuBLAS will read it: not Python's copy of the environment.
    "left": [getenv(name) is not None for name in
             (b"NVIDIA_TF32_OVERRIDE", b"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")],
}))
"""


def test_neither_the_environment_nor_torchs_settings_decide_how_exact_products_are():
    overrides = {"NVIDIA_TF32_OVERRIDE": "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    asked = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", ASK],
        env=os.environ | overrides,
        capture_output=True,
        check=True,
    )
    found = json.loads(asked.stdout)
    assert found["before"] is True, "torch no longer reads this variable: drop it"
    assert not any(found["said"].values())
    assert found["float32"] == [False, False, "ieee"]
    assert found["half"] == [False, False, False]
    assert found["left"] == [False, False]


def settings() -> list:
    matmul = torch.backends.cuda.matmul
    return [
        matmul.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
    ]


def test_in_a_block_only_and_what_others_have_set_is_back_after_it():
    matmul, before = torch.backends.cuda.matmul, settings()  # which a job in this process has set
    names = ["allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"]
    names = ["fp32_precision", *names, "allow_fp16_accumulation"]
    try:
        for name, value in zip(names, ["tf32", True, True, True], strict=True):
            setattr(matmul, name, value)
        with fixed_precision(torch.device("cuda", 0)):
            assert settings() == ["ieee", False, False, False]
        assert settings() == ["tf32", True, True, True]
        with fixed_precision(torch.device("cpu")):
            assert settings() == ["tf32", True, True, True]
        torch.set_float32_matmul_precision("high")  # TF32, the older way to say it
        with fixed_precision(torch.device("cuda", 0)):
            assert matmul.fp32_precision == "ieee"
        assert matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)
