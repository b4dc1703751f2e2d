"""What a process sees of GPUs: Python runs this first where its folder is on PYTHONPATH."""

import os
from pathlib import Path

if folder := os.environ.get("PACKEDESM_TEST_SEEN"):
    # The last process of a job to begin is the one that embeds.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    (Path(folder) / os.environ.get("SLURM_JOB_ID", "submitting")).write_text(visible)
