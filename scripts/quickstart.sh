#!/usr/bin/env bash
# Train a GPT on the source code of Python's standard library and let it write. Needs Python 3.11 or later, nothing else;
# about five minutes on two idle cores, less with bf16, after the installation. Started again, it goes on where it
# stopped. Further options go to `gpt-lightning fit`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment .venv ""
gpt-lightning fit --config configs/quickstart.yaml --if_exists resume "$@"
gpt-lightning generate --run runs/quickstart --prompt "def " --max_new_tokens 120
echo "for more, as the README has it: source .venv/bin/activate"
