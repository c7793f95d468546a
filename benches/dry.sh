#!/usr/bin/env bash
# Counts, without a GPU, the kernel launches and the memory that an image takes on an NVIDIA GPU, and times the host's part of the
# work. The model is the 0.7B one with random weights in f16.
#
#   benches/dry.sh [pixels, default 1024]
#
# Needs Linux, a Rust toolchain and a C compiler. If HART_COMPARE names a program built by the function `build`, nothing is built.
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
# generate N: generates N images.
generate() { without_gpu "$program" --device cuda --alone --res "$resolution" --precision f16 --warm "$@" 2>&1; }
report() { grep '^dry' | head -1; }
launches() { sed 's/^dry: \([0-9]*\) launches.*/\1/' <<<"$1"; }
one=$(generate 1 | report)
two=$(generate 2 | report)
memory=$(sed 's/.*device, \(.* GB\).*/\1/' <<<"$two")
host=$(generate 8 | sed -n 's/.* took \([0-9.]* s\)$/\1/p' | tail -1)
# The launches at startup cancel out in the difference.
count=$(($(launches "$two") - $(launches "$one")))
echo "$resolution pixels, f16: $count launches per image, at most $memory of GPU memory, $host on the host"
