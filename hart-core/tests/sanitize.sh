#!/usr/bin/env bash
# Runs the tests of the kernels, which contain nearly all of the crate's unsafe code, under AddressSanitizer.
# The compiler flag for it is unstable.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
cargo test --release --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir target/sanitize -p hart-core --features train --lib kernels:: "$@"
