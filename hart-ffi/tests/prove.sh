#!/usr/bin/env bash
# Tests the C ABI on Linux: the exported symbols, every function under valgrind and the sanitizers, the installed packages,
# and that Rust, C, C++, Python and LuaJIT generate the same image. Needs gcc, clang, valgrind, cmake, pkg-config, Python and LuaJIT.
# Run `cargo build --release --workspace` first. With HART_PROFILE=dist, the tested library is the one that
# `cargo build --profile dist -p hart-ffi` has built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
built=${CARGO_TARGET_DIR:-$root/target}/release
model=$root/examples/models/hart-emoji
tests=$root/hart-ffi/tests
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/scratch"

step() { printf '\n-- %s (%s s)\n' "$*" "$SECONDS"; }
fail() { echo "prove.sh: $*" >&2; exit 1; }

step "the header matches the comments of hart-ffi"
"$built/hart_header" --check

step "only hart_* is exported, and the header and the tests cover all of it"
prefix=$work/prefix
"$root/hart-ffi/install.sh" --prefix "$prefix" --no-build --profile "${HART_PROFILE:-release}"
nm -D --defined-only "$prefix/lib/libhart.so" | awk '{print $3}' | sort >"$work/shared"
nm -g --defined-only "$prefix/lib/libhart.a" 2>/dev/null | awk 'NF == 3 {print $3}' | sort >"$work/static"
# The header without comments, macros and system headers.
sed '/^#include/d' "$root/include/hart.h" | gcc -E -P -DHART_STATIC - >"$work/declarations.h"
grep -oE '\bhart_[a-z0-9_]+\(' "$work/declarations.h" | tr -d '(' | sort -u >"$work/declared"
diff "$work/shared" "$work/declared" || fail "the shared library and the header differ"
diff "$work/static" "$work/declared" || fail "the static library and the header differ"
diff <(grep -oE '\bhart_[a-z0-9_]+\(' "$prefix/include/hart.cdef" | tr -d '(' | sort) "$work/declared" || fail "hart.cdef and the header differ"
while read -r function; do
  grep -q "\b$function(" "$tests"/c/*.c || [[ $function == *_free ]] || fail "tests/c does not use $function"
  # hart.hpp does not need these: it takes strings and pixels with a size, and its observers are functions of C++.
  [[ $function =~ ^hart_(version|abi_version|last_error_copy|model_test_panic|image_new)$|_n$|_get_observer$ ]] ||
    grep -q "\b$function\b" "$root/include/hart.hpp" || fail "hart.hpp lacks $function"
done <"$work/declared"
readelf -d "$prefix/lib/libhart.so" | grep -q 'SONAME.*\[libhart.so.0\]' || fail "no soname"
echo "$(wc -l <"$work/declared") functions"

step "the headers compile without a warning: hart.h as C89 to C11 and C++11 to C++20, hart.hpp as C++17 and C++20"
strict=(-Wall -Wextra -Wpedantic -Werror "-I$root/include" -fsyntax-only)
for cc in gcc clang; do
  for standard in gnu89 c99 c11; do "$cc" -std=$standard "${strict[@]}" -x c "$root/include/hart.h"; done
done
for cxx in g++ clang++; do
  for check in hart.h:c++11 hart.h:c++17 hart.h:c++20 hart.hpp:c++17 hart.hpp:c++20; do
    echo "#include <${check%:*}>" | "$cxx" -std=${check#*:} "${strict[@]}" -Wshadow -Wconversion -x c++ -
  done
done

prompt="a red heart on a yellow background"
step "cffi and LuaJIT parse hart.cdef and generate an image"
python3 -m venv "$work/cffi"
"$work/cffi/bin/pip" -q --disable-pip-version-check install cffi
arguments=("$prefix/include/hart.cdef" "$prefix/lib/libhart.so" "$model" "$prompt")
"$work/cffi/bin/python" "$tests/cdef/generate.py" "${arguments[@]}" "$work/cffi.png" 7
luajit "$tests/cdef/generate.lua" "${arguments[@]}" "$work/luajit.png" 7

export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra shared <<<"$(pkg-config --cflags --libs hart) -Wl,-rpath,$prefix/lib"
read -ra static <<<"$(pkg-config --cflags --libs hart-static)"
strict=(-Wall -Wextra -Wpedantic -Werror -g -O1)
c11=(-std=c11 -D_POSIX_C_SOURCE=200809L "${strict[@]}")

step "the programs at the top of the headers, as C and as C++, shared and static"
opening() { sed -n '/A complete program/,/^ \* Rules/s/^ \*     //p' "$root/include/$1"; }
opening hart.h >"$work/opening.c"
cp "$work/opening.c" "$work/opening.cpp"
opening hart.hpp >"$work/wrapped.cpp"
g++ -std=c++17 "${strict[@]}" "$work/wrapped.cpp" "${shared[@]}" -o "$work/wrapped"
"$work/wrapped" "$model" "a red heart" "$work/wrapped.png" 2>/dev/null
test -s "$work/wrapped.png"
gcc -std=c99 "${strict[@]}" "$work/opening.c" "${shared[@]}" -o "$work/opening-shared"
clang -std=c99 "${strict[@]}" "$work/opening.c" "${static[@]}" -o "$work/opening-static"
g++ -std=c++17 "${strict[@]}" "$work/opening.cpp" "${shared[@]}" -o "$work/opening-cpp"
for program in shared static cpp; do
  "$work/opening-$program" "$model" "a red heart" "$work/opening-$program.png" 2>/dev/null
  cmp "$work/opening-shared.png" "$work/opening-$program.png"
done
ldd "$work/opening-static" | grep -q libhart && fail "the static program needs the shared library"

step "the library that is not installed"
mkdir "$work/target"
ln -s "$(cd "${built%/*}/${HART_PROFILE:-release}" && pwd)/libhart.so" "$work/target/libhart.so"
ln -s libhart.so "$work/target/libhart.so.0"
gcc -std=c99 "${strict[@]}" "$work/opening.c" "-I$root/include" "-L$work/target" -lhart "-Wl,-rpath,$work/target" -o "$work/opening-target"
"$work/opening-target" "$model" "a red heart" "$work/opening-target.png" 2>/dev/null
cmp "$work/opening-shared.png" "$work/opening-target.png"

step "struct layout"
for cc in gcc clang; do "$cc" "${c11[@]}" "-I$root/include" "$tests/c/layout.c" -fsyntax-only; done

# One test allocates more memory than is available.
export ASAN_OPTIONS=allocator_may_return_null=1
step "every function, also under the address and undefined-behaviour sanitizers"
for test in abi bindings; do
  gcc "${c11[@]}" "$tests/c/$test.c" "${shared[@]}" -lpthread -o "$work/$test"
  "$work/$test" "$model" "$work/scratch"
  clang "${c11[@]}" "$tests/c/$test.c" "${static[@]}" -lpthread -o "$work/$test-static"
  "$work/$test-static" "$model" "$work/scratch"
  for cc in gcc clang; do
    "$cc" "${c11[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all "$tests/c/$test.c" "${shared[@]}" -lpthread -o "$work/$test-asan"
    "$work/$test-asan" "$model" "$work/scratch"
  done
done

step "the same under the thread sanitizer"
# The library is not instrumented: its copies and frees would be reported as races.
for test in abi bindings; do
  clang "${c11[@]}" -fsanitize=thread "$tests/c/$test.c" "${shared[@]}" -lpthread -o "$work/$test-tsan"
  TSAN_OPTIONS=ignore_noninstrumented_modules=1:allocator_may_return_null=1:halt_on_error=1 "$work/$test-tsan" "$model" "$work/scratch"
done

step "limits on threads, other floating-point states, forked processes, and little stack"
gcc "${c11[@]}" "$tests/c/host.c" "${shared[@]}" -lm -lpthread -o "$work/host"
"$work/host" "$model" "$work/scratch"

step "the C++ wrapper, also under the sanitizers"
cpp17=(-std=c++17 "${strict[@]}" -Wshadow -Wconversion)
g++ "${cpp17[@]}" "$tests/cpp/wrapper.cpp" "${shared[@]}" -lpthread -o "$work/wrapper"
"$work/wrapper" "$model" "$work/scratch"
for cxx in g++ clang++; do
  "$cxx" "${cpp17[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all "$tests/cpp/wrapper.cpp" "${shared[@]}" -lpthread -o "$work/wrapper-asan"
  "$work/wrapper-asan" "$model" "$work/scratch"
done

step "all of them under valgrind: no leak, no invalid access"
# A model with a few thousand parameters and one thread: valgrind runs one thread at a time, and waiting threads spin.
# Optimised Rust may branch on an uninitialised value whose result is unused, so valgrind's check of such values is off.
tiny=$root/hart-core/tests/fixtures/slim-b
memcheck=(env RAYON_NUM_THREADS=1 valgrind -q --fair-sched=yes --undef-value-errors=no --error-exitcode=1 --leak-check=full
  --show-leak-kinds=definite --errors-for-leak-kinds=definite)
mkdir "$work/scratch/one" "$work/scratch/two" "$work/scratch/three"
"${memcheck[@]}" "$work/abi" "$tiny" "$work/scratch/one" brief & one=$!
"${memcheck[@]}" "$work/bindings" "$tiny" "$work/scratch/two" brief & two=$!
"${memcheck[@]}" "$work/wrapper" "$tiny" "$work/scratch/three" brief & three=$!
wait $one; wait $two; wait $three

step "cancellation is fast, and memory does not grow"
gcc "${c11[@]}" "$tests/c/endurance.c" "${shared[@]}" -lpthread -o "$work/endurance"
"$work/endurance" "$model"

step "the examples from the installed CMake package and from pkg-config, shared and static"
for language in c cpp; do
  for static_too in OFF ON; do
    cmake -S "$root/examples/$language" -B "$work/$language-$static_too" -DCMAKE_PREFIX_PATH="$prefix" -DHART_LINK_STATIC=$static_too >/dev/null
    cmake --build "$work/$language-$static_too" >/dev/null
  done
done
gcc "$root/examples/c/generate.c" "${shared[@]}" -o "$work/generate"

step "the same seed gives the same bytes from Rust, C, C++, Python, cffi and LuaJIT"
image=$work/rust.png
"$built/generate" "$prompt" --seed 7 --quiet --out "$image"
same() { cmp "$image" "$1" || fail "$1 differs"; }
same "$work/cffi.png"; same "$work/luajit.png"
for program in c-OFF c-ON; do "$work/$program/generate" "$model" "$prompt" "$work/$program.png" 7 2>/dev/null; same "$work/$program.png"; done
"$work/generate" "$model" "$prompt" "$work/pkg.png" 7 2>/dev/null; same "$work/pkg.png"
for program in cpp-OFF cpp-ON; do
  "$work/$program/preview" --no-preview "$model" "$prompt" "$work/$program.png" 7 >/dev/null 2>&1; same "$work/$program.png"
done
HART_LIBRARY=$prefix/lib/libhart.so python3 "$root/examples/python/generate.py" "$prompt" --seed 7 --out "$work/python.png" 2>/dev/null
same "$work/python.png"

step "the batches of Rust and Python continue each other"
lines() { for number in $(seq "$1"); do echo "{\"id\": \"$number\", \"prompt\": \"$number apples\", \"guidance\": \"2.5\"}"; done; }
lines 4 >"$work/some.jsonl"; lines 8 >"$work/all.jsonl"
rust() { "$built/batch" --model "$model" --quiet "$work/$1.jsonl" --out "$work/$2"; }
python() { HART_LIBRARY=$prefix/lib/libhart.so python3 -B "$root/examples/python/batch.py" --quiet "$work/$1.jsonl" --out "$work/$2"; }
rust some rust-first; python all rust-first; rust all rust-first
python some python-first; rust all python-first; python all python-first
for number in $(seq 8); do cmp "$work/rust-first/$number.png" "$work/python-first/$number.png"; done
for folder in rust-first python-first; do
  [ "$(wc -l <"$work/$folder/results-0-of-1.jsonl")" = 8 ] && [ ! -s "$work/$folder/errors-0-of-1.jsonl" ] || fail "$folder: wrong lines"
done

step "the Python module: its tests, and the wheel in a new environment"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install mypy numpy pillow
(cd "$root/examples/python" && HART_LIBRARY=$prefix/lib/libhart.so "$work/venv/bin/python" -B -m unittest -q test_hart)
(cd "$root/examples/python" && "$work/venv/bin/mypy" --cache-dir=/dev/null hart.py test_hart.py generate.py batch.py)
HART_LIBRARY=$prefix/lib/libhart.so "$work/venv/bin/pip" -q --disable-pip-version-check wheel --no-deps -w "$work/wheels" "$root/examples/python"
"$work/venv/bin/pip" -q --disable-pip-version-check install "$work"/wheels/hart-*.whl
(cd "$work" && env -u HART_LIBRARY "$work/venv/bin/python" - "$model" "$prompt" wheel.png <<'PYTHON'
import sys, hart
with hart.Model(sys.argv[1]) as model:
    model.generate(sys.argv[2], seed=7).images[0].save(sys.argv[3])
PYTHON
)
same "$work/wheel.png"
HART_LIBRARY=$prefix/lib/libhart.so python3 -B "$root/examples/python/tour.py" "$work/scratch" >"$work/tour.txt"
grep -q "^cancelled from inside" "$work/tour.txt" || { echo "tour.py: nothing was cancelled from inside" >&2; exit 1; }

step "done"
