#!/usr/bin/env bash
# Builds the modules for browsers and Node into pkg/: build.sh [--threads | --threads-only].
#
# Without options, the module that runs everywhere, with Rust's standard library as rustup has it:
#   rustup target add wasm32-unknown-unknown
# With --threads, also the module for pages that are cross-origin isolated. The standard library is compiled for it, from its source:
#   rustup component add rust-src
#
# wasm-bindgen is taken from WASM_BINDGEN or the PATH if its version is the crate's, otherwise it is installed below the target folder.
# wasm-opt, of binaryen, is used if it is there; the module is a little smaller to load.
set -euo pipefail
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-$PWD/../../target}
triple=wasm32-unknown-unknown

version=$(sed -n 's/^wasm-bindgen = "=\(.*\)"/\1/p' Cargo.toml)
bindgen=${WASM_BINDGEN:-$(command -v wasm-bindgen || true)}
if [ "$("${bindgen:-false}" --version 2>/dev/null)" != "wasm-bindgen $version" ]; then
  bindgen=$target/tools/bin/wasm-bindgen
  [ "$("$bindgen" --version 2>/dev/null)" = "wasm-bindgen $version" ] ||
    cargo install --quiet --locked wasm-bindgen-cli --version "$version" --root "$target/tools" --target-dir "$target/tools"
fi

# Never relaxed-simd: its results depend on the host's processor.
features=+simd128

# build FOLDER TARGET_DIR FEATURES [RUSTFLAG...] -- [CARGO_ARGUMENT...]
build() {
  local folder=$1 built=$2 flags="-C target-feature=$3"
  shift 3
  while [ "$1" != -- ]; do flags+=" $1"; shift; done
  shift
  RUSTFLAGS=$flags cargo build --profile wasm --target $triple --target-dir "$built" -p hart-browser "$@"
  mkdir -p "$folder"
  "$bindgen" --target web --out-dir "$folder" --out-name hart --no-typescript --remove-name-section --remove-producers-section \
    "$built/$triple/wasm/hart_browser.wasm"
  if command -v wasm-opt >/dev/null; then
    # The features that Rust and wasm-bindgen use, all of which browsers have had for years.
    local feature enabled=()
    for feature in simd bulk-memory bulk-memory-opt nontrapping-float-to-int sign-ext mutable-globals reference-types multivalue; do
      enabled+=("--enable-$feature")
    done
    case $flags in *+atomics*) enabled+=(--enable-threads) ;; esac
    wasm-opt -O2 --shrink-level=1 "${enabled[@]}" "$folder/hart_bg.wasm" -o "$folder/hart_bg.wasm"
  fi
  ls -l "$folder/hart_bg.wasm"
}

threads() {
  local link=--shared-memory,--import-memory,--max-memory=4294967296
  for symbol in __wasm_init_tls __tls_size __tls_align __tls_base; do link+=,--export=$symbol; done
  RUSTC_BOOTSTRAP=1 build pkg/threads "$target/wasm-threads" "$features,+atomics,+bulk-memory,+mutable-globals" \
    "-C link-arg=${link//,/ -C link-arg=}" -- -Z build-std=std,panic_abort
}

case ${1:-} in
  "") build pkg "$target" "$features" -- ;;
  --threads) build pkg "$target" "$features" -- && threads ;;
  --threads-only) threads ;;
  *) echo "usage: build.sh [--threads | --threads-only]" >&2; exit 2 ;;
esac
