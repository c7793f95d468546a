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
known=$(on max qemu-aarch64 -cpu help) || true
[[ $known == *neoverse-n2* ]] || cpus[2]=max

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
  -L"$built" -lhart -lpthread -Wl,-rpath,"$scratch" -o "$scratch/abi"
# The name that the library gives itself.
ln -s "$built/libhart.so" "$scratch/libhart.so.0"
on "${cpus[1]}" qemu-aarch64 "$scratch/abi" hart-core/tests/fixtures/slim-b "$scratch" brief

step "a wheel with the library"
python3 -m venv "$scratch/venv"
HART_LIBRARY=$built/libhart.so "$scratch/venv/bin/pip" -q --disable-pip-version-check wheel --no-deps -w "$scratch" \
  --config-settings=--build-option=--plat-name=linux_aarch64 "$root/examples/python"
python3 -m zipfile -e "$scratch"/hart-*-py3-none-linux_aarch64.whl "$scratch/wheel"
cmp "$scratch/wheel/hart/libhart.so" "$built/libhart.so"

step "the wheel's package in Python for ARM64"
python=$work/python-arm64
if [ ! -e "$python/usr/bin/python3" ]; then
  run dpkg --add-architecture arm64
  run apt-get update -qq
  rm -rf "$python"
  mkdir -p "$python"
  # Unpacked, not installed, because this machine's Python has the same package names.
  run bash -euc '
    cd "$1"
    minimal=$(apt-cache depends python3-minimal:arm64 | grep -oE "python3\.[0-9]+-minimal" | sort -u)
    python=${minimal%-minimal}
    apt-get download -qq "$minimal:arm64" "lib$minimal:arm64" "lib$python-stdlib:arm64" \
      libc6:arm64 libgcc-s1:arm64 libexpat1:arm64 libffi8:arm64 zlib1g:arm64
    for package in *.deb; do dpkg -x "$package" .; done
    rm -- *.deb
    [ -e lib ] || ln -s usr/lib lib
    ln -sf "$python" usr/bin/python3
  ' bash "$python"
fi
model=$root/examples/models/hart-emoji
prompt="ein Herz 心"
on "${cpus[1]}" qemu-aarch64 "$built/generate" "$prompt" --seed 7 --quiet --out "$scratch/rust.png"
on "${cpus[1]}" qemu-aarch64 -L "$python" "$python/usr/bin/python3" -B .ci/platforms.d/image.py "$scratch/wheel" "$model" "$prompt" \
  "$scratch/python.png"
cmp "$scratch/rust.png" "$scratch/python.png" || fail "the image of hart.py differs"

step "images, which .ci/platforms x86_64 compares"
for cpu in "${cpus[@]}"; do
  images "ARM64, $cpu" on "$cpu" qemu-aarch64 "$built/generate"
done
# The kernels of f32 are the same on all of them.
for cpu in "${cpus[@]:1}"; do
  diff -r "$work/images/ARM64, ${cpus[0]}/f32" "$work/images/ARM64, $cpu/f32" || fail "the images of ${cpus[0]} and $cpu differ"
done
