#!/usr/bin/env bash
# Put Debian's Slurm on this machine, without accounting: controller, node daemon, commands, munge.
set -euo pipefail
command -v slurmctld >/dev/null && command -v munged >/dev/null && command -v sbatch >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
as_root=$([ "$(id -u)" = 0 ] || echo "sudo --non-interactive --preserve-env=DEBIAN_FRONTEND")
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
