#!/usr/bin/env bash
# Snakemake runs a copy of this in the new environment, from the working directory. What lies there
# need not be ours: rules/package.smk has written down which checkout the rules are of.
set -euo pipefail
checkout=$(cat .snakemake/packedesm-checkout || true)
if ! grep -qs '^name = "packedesm"' "$checkout/pyproject.toml"; then
  echo "packedesm: '$checkout' is no checkout of it; clone it and use the Snakefile in there" >&2
  exit 1
fi
python -m pip install --no-deps "$checkout"
