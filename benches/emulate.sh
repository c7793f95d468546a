#!/usr/bin/env bash
# hart's kernels for NVIDIA GPUs, matrix units and all, run on a CPU from their CUDA source, thread by thread: their tests, what f16
# changes, and the recorded numbers. Takes about ten minutes.
#
#   benches/emulate.sh [filter of the recorded numbers' tests]
#
# Needs Linux, a Rust toolchain, a C and a C++ compiler; neither a GPU nor a driver or toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
source benches/dry/without-gpu.sh
export CARGO_PROFILE_DEV_DEBUG=0
tests=(--package hart-core --features cuda-nvrtc,train --profile test)
build "$scratch/lib" "${tests[@]}" --lib
build "$scratch/precision" "${tests[@]}" --test precision
build "$scratch/golden" "${tests[@]}" --test golden
on_the_cpu "$scratch/lib" --test-threads 1 kernels::cube sampling
on_the_cpu "$scratch/precision" --test-threads 1 recorded_logits predicted_noise
on_the_cpu "$scratch/golden" --test-threads 1 "$@"
