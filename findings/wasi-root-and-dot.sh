#!/usr/bin/env bash
# Rust 1.95.0's wasm32-wasip1 (wasi-libc) in Node 20's WASI: giving access to "." beside "/" makes absolute paths relative.
#
# Guess before running: with the preopened folders "/" and ".", the program opens /etc/hostname through "/", which is a prefix of the
# path, and relative paths through ".".
# Seen: each folder alone works as named. With both, in the order "/", ".", the absolute path is looked up in the current folder, as if
# it were "etc/hostname", and is not found; in the order ".", "/", relative paths are looked up in the root folder instead. Both names
# are empty once "/" and "./" are stripped, and of prefixes of the same length the later folder wins.
# A program that was given the whole disk and the current folder, to be safe, loses one of them.
#
# Needs rustup's 1.95.0 toolchain with the target wasm32-wasip1, and Node 20. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > main.rs <<'RUST'
fn main() {
    let exists = |path: &str| std::fs::metadata(path).is_ok();
    println!("absolute {}, relative {}", exists(&std::env::args().nth(1).unwrap()), exists("here.txt"));
}
RUST
rustc -O --target wasm32-wasip1 -o main.wasm main.rs
touch here.txt
cat > run.mjs <<'JS'
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";
const names = process.argv.slice(2);
const preopens = Object.fromEntries(names.map((name) => [name, name]));
const wasi = new WASI({ version: "preview1", args: ["main", `${process.cwd()}/here.txt`], preopens });
const { instance } = await WebAssembly.instantiate(await readFile("main.wasm"), wasi.getImportObject());
wasi.start(instance);
JS
run() { printf '%s: ' "$*"; node --no-warnings run.mjs "$@"; }
out=$(run / ; run . ; run / . ; run . /)
printf '%s\n' "$out"
[ "$out" = "/: absolute true, relative false
.: absolute false, relative true
/ .: absolute false, relative true
. /: absolute true, relative false" ]
