#!/usr/bin/env bash
# Lint, types and all tests, slow ones included, in a virtual environment of their own. Options go to pytest:
#   bash scripts/test.sh -m "not slow"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment .venv-test dev
ruff format --check .
ruff check .
mypy
python -m pytest "$@"
