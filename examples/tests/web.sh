#!/usr/bin/env bash
# The web server with a real browser and with OpenAI's client: web.sh [PYTHON [SCREENSHOT]].
# Installs nothing. PYTHON has the packages selenium and openai; chromium and chromedriver are in PATH; the server is built:
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
