#!/usr/bin/env bash
# Builds hart for an NVIDIA GPU, checks it against the recorded numbers, and times it against PyTorch on the same card. Prints a table.
#
#   benches/gpu.sh [folder of the results, default target/gpu]
#
# Needs a Rust toolchain, a driver, NVIDIA's NVRTC library (of the CUDA toolkit), and Python with torch and numpy. With HART_PROGRAMS
# set to a folder that holds golden, kernels and compare, nothing is built.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/gpu}
mkdir -p "$out"
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

say device
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"

if [ -z "${HART_PROGRAMS:-}" ]; then
  say build
  HART_PROGRAMS=$(mktemp -d)
  cargo build --release --package hart-benches --features hart-core/cuda-nvrtc --bin compare
  cp target/release/compare "$HART_PROGRAMS/"
  program() { # the program of a test, by cargo's messages
    cargo test --release --package hart-core --features cuda-nvrtc --no-run --message-format=json "$@" |
      python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["executable"])'
  }
  cp "$(program --test golden)" "$HART_PROGRAMS/golden"
  cp "$(program --lib)" "$HART_PROGRAMS/kernels"
fi

export HART_TEST_DEVICE=cuda
say recorded numbers
"$HART_PROGRAMS/golden" --nocapture --test-threads 1 >"$out/golden.txt" 2>&1 && echo "all within their tolerances" || tail -20 "$out/golden.txt"
say kernels
"$HART_PROGRAMS/kernels" cube sampling --test-threads 1 >"$out/kernels.txt" 2>&1 && tail -2 "$out/kernels.txt" || tail -20 "$out/kernels.txt"

for resolution in ${HART_RESOLUTIONS:-512 1024}; do
  say "$resolution pixels"
  "$HART_PROGRAMS/compare" --device cuda --res "$resolution" --precision f16 --warm 4 --repeat "${HART_REPEAT:-2}" \
    --csv "$out/cuda-$resolution.csv" --json | tee "$out/cuda-$resolution.txt"
done
say "8 pictures of 1024 pixels"
"$HART_PROGRAMS/compare" --device cuda --res 1024 --precision f16 --batch 8 --warm 2 --json | tee "$out/cuda-batch.txt"
