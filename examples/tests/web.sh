#!/usr/bin/env bash
# Tests the web server with a browser and with OpenAI's client: web.sh [PYTHON [SCREENSHOT]].
# Needs a PYTHON with the packages selenium and openai, chromium and chromedriver in PATH, and the server built:
# cargo build --release --workspace --features hart-examples/web
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=$(mktemp -d)
"${CARGO_TARGET_DIR:-target}/release/web" --port 0 >"$work/address" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true; rm -r "$work"' EXIT
for _ in $(seq 100); do
  [ -s "$work/address" ] && break
  sleep 0.1
done
url=$(grep -o 'http://[^ ]*' "$work/address")

"$python" examples/tests/web_openai.py "$url"
"$python" examples/tests/web_page.py "$url" ${2:+--screenshot "$2"}
