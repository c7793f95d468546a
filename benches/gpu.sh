#!/usr/bin/env bash
# Builds hart for an NVIDIA GPU, tests it against the recorded values, and compares its speed with PyTorch on the same GPU.
#
#   benches/gpu.sh [folder for the results, default target/gpu]
#
# Needs a Rust toolchain, a driver, NVIDIA's NVRTC library (part of the CUDA toolkit), and Python with torch and numpy. If
# HART_PROGRAMS is a folder with the programs golden, kernels and compare, nothing is built.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/gpu}
mkdir -p "$out"
step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

step device
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"

if [ -z "${HART_PROGRAMS:-}" ]; then
  step build
  HART_PROGRAMS=$(mktemp -d)
  cargo build --release --package hart-benches --features hart-core/cuda-nvrtc --bin compare
  cp target/release/compare "$HART_PROGRAMS/"
  # test_program ARGUMENTS...: builds a test program and prints its path, which cargo reports as JSON.
  test_program() {
    cargo test --release --package hart-core --features cuda-nvrtc --no-run --message-format=json "$@" |
      python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["executable"])'
  }
  cp "$(test_program --test golden)" "$HART_PROGRAMS/golden"
  cp "$(test_program --lib)" "$HART_PROGRAMS/kernels"
fi

export HART_TEST_DEVICE=cuda
step recorded values
"$HART_PROGRAMS/golden" --nocapture --test-threads 1 >"$out/golden.txt" 2>&1 && echo "all within tolerance" || tail -20 "$out/golden.txt"
step kernels
"$HART_PROGRAMS/kernels" kernels::gpu sampling --test-threads 1 >"$out/kernels.txt" 2>&1 && tail -2 "$out/kernels.txt" || tail -20 "$out/kernels.txt"

for resolution in ${HART_RESOLUTIONS:-512 1024}; do
  step "$resolution pixels"
  "$HART_PROGRAMS/compare" --device cuda --res "$resolution" --precision f16 --warm 4 --repeat "${HART_REPEAT:-2}" \
    --csv "$out/cuda-$resolution.csv" --json | tee "$out/cuda-$resolution.txt"
done
step "8 images of 1024 pixels"
"$HART_PROGRAMS/compare" --device cuda --res 1024 --precision f16 --batch 8 --warm 2 --json | tee "$out/cuda-batch.txt"
