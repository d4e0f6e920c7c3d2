#!/usr/bin/env bash
# Lint, types and all tests, slow ones included, in a virtual environment of their own. Options go to pytest:
#   bash scripts/test.sh -m "not slow"
# One worker per core, with one thread each: tiny models are slower on two.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment .venv-test dev
ruff format --check .
ruff check .
mypy
OMP_NUM_THREADS=1 python -m pytest -n "$(nproc)" --dist worksteal "$@"
