#!/usr/bin/env bash
# 64-bit ARM Linux: builds the library, the C ABI and `generate`, and tests them under qemu on processors with and without the
# instructions that the kernels choose from. About half an hour on two cores.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

target=aarch64-unknown-linux-gnu
toolchain "$target" rustc libstd-rust-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
built=$CARGO_TARGET_DIR/$target/release
export_for_arm=(
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
  QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
)
# Runs a command for a processor of qemu.
on() { run env "${export_for_arm[@]}" "QEMU_CPU=$1" "${@:2}"; }
# All commands build the same packages: others would have other features and compile burn again.
packages=(--release --target "$target" -p hart-core -p hart-ffi -p hart-examples)

step build
on max cargo build "${packages[@]}" --lib --bin generate
on max cargo test "${packages[@]}" --no-run --lib --test golden --test precision

# Armv8.0; dot products; int8 and bf16 matrix products (qemu's neoverse-v1 lacks bf16). Older versions of qemu have `max` only.
cpus=(cortex-a72 cortex-a76 neoverse-n2)
on max qemu-aarch64 -cpu help | grep -q neoverse-n2 || cpus[2]=max

for cpu in "${cpus[@]}"; do
  step "kernels and recorded values on $cpu"
  on "$cpu" cargo test "${packages[@]}" --lib -- kernels nn::
  on "$cpu" cargo test "${packages[@]}" --test golden
done

step "products in bf16 and int8 on ${cpus[2]}"
on "${cpus[2]}" cargo test "${packages[@]}" --test precision

step "every function of the C ABI on ${cpus[1]}"
scratch=$(mktemp -d "$work/arm64.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
run aarch64-linux-gnu-gcc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wpedantic -Werror -O1 -Iinclude hart-ffi/tests/c/abi.c \
  -L"$built" -lhart -lpthread -Wl,-rpath,"$built" -o "$scratch/abi"
on "${cpus[1]}" qemu-aarch64 "$scratch/abi" hart-core/tests/fixtures/slim-b "$scratch" brief

step "the same image on every processor"
prompt="a red heart on a yellow background"
for cpu in "${cpus[@]}"; do
  on "$cpu" qemu-aarch64 "$built/generate" "$prompt" --seed 7 --quiet --out "$scratch/$cpu.png"
  cmp "$scratch/${cpus[0]}.png" "$scratch/$cpu.png" || fail "the images of ${cpus[0]} and $cpu differ"
done
native=$root/target/release/generate
if [ -x "$native" ]; then
  "$native" "$prompt" --seed 7 --quiet --out "$scratch/native.png"
  cmp "$scratch/native.png" "$scratch/${cpus[0]}.png" || fail "the images of $(uname -m) and ARM differ"
else
  echo "not compared with this machine's: build target/release/generate first"
fi
