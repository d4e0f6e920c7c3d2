#!/usr/bin/env bash
# Lint, types and all tests, slow ones included, in a virtual environment of their own. Options go to pytest:
#   bash scripts/test.sh -m "not slow"
# The pages are opened in Debian's Chromium, which is installed where that can be done; elsewhere those tests are skipped.
# One worker per core, with one thread each: tiny models are slower on two.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment .venv-test dev
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 || true
fi
ruff format --check .
ruff check .
mypy
OMP_NUM_THREADS=1 python -m pytest -n "$(nproc)" --dist worksteal "$@"
