#!/usr/bin/env bash
# Tests the web server with a browser and with the clients of other programs: web.sh [PYTHON [SCREENSHOT]].
# Needs a PYTHON with the packages selenium, openai, pillow and prometheus_client, chromium and chromedriver in PATH, and the server
# built: cargo build --release --workspace --features hart-examples/web
# With NODE_MODULES, a folder in which `npm install openai` has run, it also tests OpenAI's client for Node.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=$(mktemp -d)
server=
stop() {
  [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true
  server=
}
trap 'stop; rm -r "$work"' EXIT

# Starts the server with options, and sets url.
start() {
  stop
  : >"$work/address"
  "${CARGO_TARGET_DIR:-target}/release/web" --port 0 "$@" >"$work/address" &
  server=$!
  for _ in $(seq 100); do
    [ -s "$work/address" ] && break
    sleep 0.1
  done
  url=$(grep -o 'http://[^ ]*' "$work/address")
}

start
"$python" examples/tests/web_openai.py "$url"
"$python" examples/tests/web_clients.py "$url"
if [ -n "${NODE_MODULES:-}" ]; then
  test=$PWD/examples/tests/web_openai.mjs
  (cd "$NODE_MODULES" && node "$test" "$url")
fi
"$python" examples/tests/web_load.py "$url"
start --queue 8
"$python" examples/tests/web_retry.py "$url"
# One request after the other, so that one waits.
start --parallel 1
"$python" examples/tests/web_page.py "$url" ${2:+--screenshot "$2"}
