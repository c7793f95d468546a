#!/usr/bin/env bash
# Compares hart's text encoder with the Qwen2Model of transformers, token by token, and fails if they differ:
#
#     hart-core/tests/qwen2_transformers.sh [CHECKPOINT...]
#
# The default is the fixture tiny-a. For the sizes of the published text model, pass a checkpoint of `make_checkpoint --text full`.
# Run by hand: it downloads PyTorch, which is several gigabytes, into a temporary environment. HART_TEST_PYTHON may name an interpreter
# that has the packages already. Needs `cargo build --release -p hart-ffi`, or HART_LIBRARY, and Python 3.10 or newer.
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- "$tests/fixtures/tiny-a"
python=${HART_TEST_PYTHON:-}
if [ -z "$python" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" -q --disable-pip-version-check install --no-cache-dir --no-compile transformers==5.24.0 torch==2.15.0
  python=$work/venv/bin/python
fi
PYTHONPATH=$tests/../../examples/python HF_HUB_OFFLINE=1 "$python" -B "$tests/qwen2_transformers.py" "$@"
