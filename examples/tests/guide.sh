#!/usr/bin/env bash
# Runs the commands and the C, C++ and Python programs of docs/guide.md. Its Rust program is a documentation test.
# Needs the programs built by `cargo build --release --workspace --features hart-examples/images,hart-examples/web`, and hart installed in PREFIX.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
prefix=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
built=${CARGO_TARGET_DIR:-$root/target}/release
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
ln -s "$root/examples" "$root/hart-ffi" .

# Writes the guide's code blocks of one language to files.
blocks() { awk -v language="$1" -v name="$2" '/^```/ { if (inside) { inside = 0; close(file) } else if ($0 == "```" language) { inside = 1; file = sprintf("block-%02d.%s", ++n, name) } next } inside { print > file }' "$root/docs/guide.md"; }

# Replaces cargo: runs the programs that are already built.
cargo() {
  local program=generate
  while [ "$1" != -- ]; do case $1 in --bin) program=$2; shift 2 ;; *) shift ;; esac; done
  shift
  if [ "$program" = web ]; then
    "$built/web" "$@" >web.log 2>&1 &
    for _ in $(seq 100); do curl -fs http://127.0.0.1:7860/api/model >/dev/null && return; sleep 0.1; done
    cat web.log >&2; return 1
  fi
  "$built/$program" "$@"
}
blocks sh sh
for block in block-*.sh; do
  # The caller has installed hart.
  if grep -q 'hart-ffi/install.sh' "$block"; then continue; fi
  echo "-- $(head -n 1 "$block")"
  # shellcheck disable=SC1090
  set -x; . "./$block"; { set +x; } 2>/dev/null
done >log 2>errors || { cat log errors >&2; exit 1; }

blocks c c; blocks cpp cpp; blocks python py
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags <<<"$(pkg-config --cflags --libs hart) -Wl,-rpath,$prefix/lib"
for source in block-*.c; do gcc -std=c99 -Wall -Wextra -Werror "$source" "${flags[@]}" -o program && ./program; done
for source in block-*.cpp; do g++ -std=c++17 -Wall -Wextra -Werror "$source" "${flags[@]}" -o program && ./program 2>/dev/null; done
for source in block-*.py; do env -u HART_LIBRARY PYTHONPATH="$prefix/share/hart/python" python3 -B "$source" >/dev/null; done
cmp crown-c.png crown-cpp.png
cmp crown-c.png crown-py.png
for image in heart left-half around variation-0 variation-3 image-7 all line-0 line-1 images/parrot images/tree sunflower allowed crowns key; do
  test -s "$image.png" || { echo "the guide's commands did not write $image.png: $(ls)" >&2; exit 1; }
done
echo "the guide's commands and programs run"
