#!/usr/bin/env bash
# The tests of the kernels, the only place with unsafe code, under AddressSanitizer. The compiler's flag for it is unstable.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
cargo test --release --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir target/sanitize -p hart-core --features train --lib kernels:: "$@"
