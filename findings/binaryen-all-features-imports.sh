#!/usr/bin/env bash
# binaryen 132 with Node 20.20.2: wasm-opt --all-features makes a module that loaded before impossible to load.
#
# Guess before running: --all-features allows the optimiser to read and write instructions of newer proposals. A module that uses none of
# them, two imports and a call of each, is still one that every engine loads.
# Seen: the writer also uses the compact form of the import section, a proposal as well, as soon as two imports have the same module name.
# Node 20 refuses the result with "WebAssembly.Module(): unknown import kind 0x7e". With one import, or without the option, it loads.
# Builds for browsers that pass the option to get SIMD and threads fail in older engines: name the features one by one instead.
#
# Needs npm. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund binaryen@132.0.0 node@20.20.2 >/dev/null
bin=node_modules/.bin

# Optimises a module with some imports of "env" and prints how Node loads it.
load() {
  local imports='' calls='' i
  for i in $(seq "$1"); do
    imports+="(import \"env\" \"f$i\" (func \$f$i (param i32)))"
    calls+="(call \$f$i (local.get 0))"
  done
  echo "(module $imports (func (export \"run\") (param i32) $calls))" >in.wat
  "$bin/wasm-as" in.wat -o in.wasm
  "$bin/wasm-opt" -O2 ${2:-} in.wasm -o out.wasm
  "$bin/node" -e 'try { new WebAssembly.Module(require("fs").readFileSync("out.wasm")); console.log("loads") } catch (e) { console.log(e.message) }'
}

plain=$(load 2)
one=$(load 1 --all-features)
two=$(load 2 --all-features)
printf 'two imports: %s\none import, all features: %s\ntwo imports, all features: %s\n' "$plain" "$one" "$two"
[ "$plain" = loads ] && [ "$one" = loads ] && [[ $two == *"unknown import kind"* ]]
