#!/usr/bin/env bash
# Snakemake runs this in the new environment, from the folder that it was started in.
set -euo pipefail
python -m pip install --no-deps "${PACKEDESM_CHECKOUT:-.}"
