#!/usr/bin/env bash
# Tests examples/python/ray_batch.py with Ray on this machine: kills a worker and the driver, and compares with one process.
# Installs Ray into a temporary folder (about 700 MB), and takes some minutes. Needs Linux, Python 3.10 to 3.13, and the library of
# `cargo build --release -p hart-ffi` or in HART_LIBRARY. ray.sh [PYTHON]: a PYTHON with these packages, instead of installing them.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${1:-$work/venv/bin/python}
if [ $# -eq 0 ]; then
  python3 -m venv "$work/venv"
  "$python" -m pip -q --disable-pip-version-check install "ray[data]==2.60.0" pyarrow==26.0.1 mypy
fi
export HART_LIBRARY=${HART_LIBRARY:-${CARGO_TARGET_DIR:-$PWD/target}/release/libhart.so} PYTHONPATH=$PWD/examples/python
# Ray's files, the token that its processes share, and no reports of usage.
"$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$work/token"
export RAY_TMPDIR=$work RAY_AUTH_TOKEN_PATH=$work/token RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=1
(cd examples/python && "$python" -m mypy --cache-dir=/dev/null ray_batch.py ../tests/ray_kill.py)
"$python" examples/tests/ray_kill.py
