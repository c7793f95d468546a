#!/usr/bin/env bash
# x86-64 Linux: generates images with the instructions of this machine, with those of AVX2 and FMA, and without either, and prints a
# table of their differences, with the other platforms whose scripts ran before. About a quarter of an hour on two cores.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

toolchain x86_64-unknown-linux-gnu qemu-user

step build
# As .ci/run builds it.
export CARGO_TARGET_DIR=$root/target
run cargo build --release --workspace --features hart-examples/web,hart-examples/train,hart-examples/evaluate --bin generate
built=$CARGO_TARGET_DIR/release

step images
images "x86-64, this machine" run "$built/generate"
# qemu's `max` has AVX2 and FMA, but not AVX-512.
for pair in "AVX2:max" "no AVX:Nehalem"; do
  images "x86-64, ${pair%:*}" run qemu-x86_64 -cpu "${pair#*:}" "$built/generate"
done

step "images compared with those of this machine: $(sed -n 's/^flags.*: //p;T;q' /proc/cpuinfo | grep -oE '\b(avx2|avx512f|avx512_bf16|amx_tile)\b' | tr '\n' ' ')"
"$root/.ci/platforms.d/images.py" "$work/images" "x86-64, this machine"

# Processors with fused multiply-add compute the same bits in f32.
grep -qw fma /proc/cpuinfo || exit 0
for folder in "$work/images"/*; do
  case ${folder##*/} in *"no AVX" | wasm*) continue ;; esac
  diff -r "$work/images/x86-64, this machine/f32" "$folder/f32" || fail "the images of $folder differ"
done
