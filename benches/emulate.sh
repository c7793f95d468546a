#!/usr/bin/env bash
# Tests hart's kernels for NVIDIA GPUs, tensor cores included, on a CPU. Their CUDA source is compiled for the CPU and run thread by
# thread. Runs the tests of the kernels, of the precision of f16, and of the recorded values. Takes about ten minutes.
#
#   benches/emulate.sh [filter for the tests of the recorded values]
#
# Needs Linux, a Rust toolchain, a C and a C++ compiler. Needs no GPU, driver or CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
source benches/dry/without-gpu.sh
export CARGO_PROFILE_DEV_DEBUG=0
tests=(--package hart-core --features cuda-nvrtc,train --profile test)
build "$scratch/lib" "${tests[@]}" --lib
build "$scratch/precision" "${tests[@]}" --test precision
build "$scratch/golden" "${tests[@]}" --test golden
on_the_cpu "$scratch/lib" --test-threads 1 kernels::gpu sampling
on_the_cpu "$scratch/precision" --test-threads 1 recorded_logits predicted_noise
on_the_cpu "$scratch/golden" --test-threads 1 "$@"
