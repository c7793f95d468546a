#!/usr/bin/env bash
# What a picture asks of an NVIDIA GPU, counted without one: launches, and memory. The 0.7B model with random weights, f16.
#
#   benches/dry.sh [pixels, default 1024]
#
# Needs Linux, a Rust toolchain and a C compiler. With HART_COMPARE set to the program, nothing is built. Says nothing of time.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
cc -O1 -shared -fPIC -w benches/dry/cuda.c -o "$scratch/libcuda.so.1" -lpthread
for name in libcuda.so libnvrtc.so libnvrtc.so.12 libnvrtc.so.13; do ln -s libcuda.so.1 "$scratch/$name"; done
if [ -z "${HART_COMPARE:-}" ]; then
  cargo build --release --package hart-benches --features hart-core/cuda-nvrtc --bin compare
  HART_COMPARE=target/release/compare
fi
program=$(realpath "$HART_COMPARE")
pictures() { # so many pictures: what the driver counted. What is kept of their kernels is kept here, where no GPU finds it.
  (cd "$scratch" && HOME="$scratch" XDG_CACHE_HOME="$scratch" LD_LIBRARY_PATH="$scratch" CUDA_PATH="$scratch" \
    "$program" --device cuda --alone --res "$resolution" --precision f16 --warm "$1" 2>&1 >/dev/null) | grep '^dry' | head -1
}
resolution=${1:-1024}
one=$(pictures 1)
two=$(pictures 2)
count() { sed 's/^dry: \([0-9]*\) launches.*/\1/' <<<"$1"; }
memory=$(sed 's/.*device, \(.* GB\).*/\1/' <<<"$two")
echo "$resolution pixels, f16: $(($(count "$two") - $(count "$one"))) launches a picture, $memory of the GPU's memory at most"
