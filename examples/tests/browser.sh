#!/usr/bin/env bash
# Tests the static page in Chromium: browser.sh [PYTHON [SCREENSHOT]].
# Needs a PYTHON with the package selenium, chromium and chromedriver in PATH, the page built by examples/browser/site.sh, and the program
# built by cargo build --release --workspace, whose image is the reference.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
"${CARGO_TARGET_DIR:-target}/release/generate" "a red heart on a yellow background" --seed 7 --out "$work/reference.png" >"$work/log" 2>&1 ||
  { cat "$work/log" >&2; exit 1; }
"$python" -B examples/browser/test_page.py --reference "$work/reference.png" ${2:+--screenshot "$2"}
