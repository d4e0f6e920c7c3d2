# Sourced by the other scripts:  use_environment FOLDER EXTRA  makes the virtual environment FOLDER in the checkout,
# installs the package with that extra (may be empty), and puts it first in PATH. A second call installs nothing.

use_environment() {
  local folder=$1 extra=$2 stamp python
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  python=$(find_python) || exit 1
  stamp="$(cksum <pyproject.toml) $extra $PWD"
  if [ "$(cat "$folder/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "installing into $folder (a few minutes, once)"
    [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
    # -qq: pip's own warnings about mirrors and versions are no concern of the reader; errors still show
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check -e ".${extra:+[$extra]}"
    echo "$stamp" >"$folder/.installed"
  fi
  PATH="$PWD/$folder/bin:$PATH"
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.12 python3.11 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: needs Python 3.11, 3.12 or 3.13; install one, or name it: PYTHON=/path/to/python3.12 bash $0" >&2
  return 1
}
