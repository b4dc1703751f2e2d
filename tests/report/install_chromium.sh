#!/usr/bin/env bash
# Put Debian's Chromium on this machine, with a font to write with.
set -euo pipefail
command -v chromium >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
as_root=$([ "$(id -u)" = 0 ] || echo "sudo --non-interactive --preserve-env=DEBIAN_FRONTEND")
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
