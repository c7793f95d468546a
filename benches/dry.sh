#!/usr/bin/env bash
# What a picture asks of an NVIDIA GPU, counted without one: launches, and memory; and what its host does meanwhile, in seconds. The
# 0.7B model with random weights, f16.
#
#   benches/dry.sh [pixels, default 1024]
#
# Needs Linux, a Rust toolchain and a C compiler. With HART_COMPARE set to a program that `build` made, nothing is built.
set -euo pipefail
cd "$(dirname "$0")/.."
source benches/dry/without-gpu.sh
program=$scratch/compare
if [ -n "${HART_COMPARE:-}" ]; then
  cp "$HART_COMPARE" "$program"
  cp "$HART_COMPARE.llvm.so" "$program.llvm.so"
else
  build "$program" --release --package hart-benches --features hart-core/cuda-nvrtc --bin compare
fi
resolution=${1:-1024}
pictures() { without_gpu "$program" --device cuda --alone --res "$resolution" --precision f16 --warm "$@" 2>&1; } # so many, then one
counted() { grep '^dry' | head -1; }
one=$(pictures 1 | counted)
two=$(pictures 2 | counted)
count() { sed 's/^dry: \([0-9]*\) launches.*/\1/' <<<"$1"; }
memory=$(sed 's/.*device, \(.* GB\).*/\1/' <<<"$two")
host=$(pictures 8 | sed -n 's/.* took \([0-9.]* s\)$/\1/p' | tail -1)
echo "$resolution pixels, f16: $(($(count "$two") - $(count "$one"))) launches a picture, $memory of the GPU's memory at most, $host of the host"
