#!/usr/bin/env bash
# Proves the C ABI on this machine: what the library exports, every function under valgrind and the sanitizers, the installed packages,
# and the same picture from Rust, C, C++ and Python. Linux; needs gcc, clang, valgrind, cmake, pkg-config and Python.
# Takes what `cargo build --release --workspace` has built. With HART_PROFILE=dist the library is the one that
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

step "the header is made from hart-ffi"
"$built/hart_header" --check

step "only hart_* is exported, and all of it is in the header and in the test"
prefix=$work/prefix
"$root/hart-ffi/install.sh" --prefix "$prefix" --no-build --profile "${HART_PROFILE:-release}"
nm -D --defined-only "$prefix/lib/libhart.so" | awk '{print $3}' | sort >"$work/shared"
nm -g --defined-only "$prefix/lib/libhart.a" 2>/dev/null | awk 'NF == 3 {print $3}' | sort >"$work/static"
grep -v '^ \*' "$root/include/hart.h" | grep -oE '\bhart_[a-z0-9_]+\(' | tr -d '(' | sort -u >"$work/declared"
diff "$work/shared" "$work/declared" || fail "the shared library and the header differ"
diff "$work/static" "$work/declared" || fail "the static library and the header differ"
while read -r function; do
  grep -q "\b$function(" "$tests/c/abi.c" || [[ $function == *_free ]] || fail "abi.c doesn't use $function"
  # hart.hpp has its own words for these, or no use for them.
  [[ $function =~ ^hart_(version|abi_version|last_error_copy|model_test_panic)$ ]] ||
    grep -q "\b$function\b" "$root/include/hart.hpp" || fail "hart.hpp lacks $function"
done <"$work/declared"
readelf -d "$prefix/lib/libhart.so" | grep -q 'SONAME.*\[libhart.so.0\]' || fail "no soname"
echo "$(wc -l <"$work/declared") functions"

step "the headers are C99, C11, C++17 and C++20, without a warning"
strict=(-Wall -Wextra -Wpedantic -Werror "-I$root/include" -fsyntax-only)
for cc in gcc clang; do
  for standard in c99 c11; do "$cc" -std=$standard "${strict[@]}" -x c "$root/include/hart.h"; done
done
for cxx in g++ clang++; do
  for standard in c++17 c++20; do
    for header in hart.h hart.hpp; do
      echo "#include <$header>" | "$cxx" -std=$standard "${strict[@]}" -Wshadow -Wconversion -x c++ -
    done
  done
done

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

step "struct layout"
for cc in gcc clang; do "$cc" "${c11[@]}" "-I$root/include" "$tests/c/layout.c" -fsyntax-only; done

# One test asks for more memory than there is.
export ASAN_OPTIONS=allocator_may_return_null=1
step "every function, and under the address and undefined-behaviour sanitizers"
gcc "${c11[@]}" "$tests/c/abi.c" "${shared[@]}" -lpthread -o "$work/abi"
"$work/abi" "$model" "$work/scratch"
clang "${c11[@]}" "$tests/c/abi.c" "${static[@]}" -lpthread -o "$work/abi-static"
"$work/abi-static" "$model" "$work/scratch"
for cc in gcc clang; do
  "$cc" "${c11[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all "$tests/c/abi.c" "${shared[@]}" -lpthread -o "$work/abi-asan"
  "$work/abi-asan" "$model" "$work/scratch"
done

step "the C++ wrapper, and under the sanitizers"
cpp17=(-std=c++17 "${strict[@]}" -Wshadow -Wconversion)
g++ "${cpp17[@]}" "$tests/cpp/wrapper.cpp" "${shared[@]}" -lpthread -o "$work/wrapper"
"$work/wrapper" "$model" "$work/scratch"
for cxx in g++ clang++; do
  "$cxx" "${cpp17[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all "$tests/cpp/wrapper.cpp" "${shared[@]}" -lpthread -o "$work/wrapper-asan"
  "$work/wrapper-asan" "$model" "$work/scratch"
done

step "both under valgrind: no leak, no invalid access"
# A model of a few thousand parameters, and one thread: valgrind runs threads in turn, and waiting ones spin. Optimised Rust may look at a
# value before it looks whether there is one, and not use it; valgrind's report of that is no finding, so it is off.
tiny=$root/hart-core/tests/fixtures/slim-b
memcheck=(env RAYON_NUM_THREADS=1 valgrind -q --fair-sched=yes --undef-value-errors=no --error-exitcode=1 --leak-check=full
  --show-leak-kinds=definite --errors-for-leak-kinds=definite)
"${memcheck[@]}" "$work/abi" "$tiny" "$work/scratch" brief & one=$!
"${memcheck[@]}" "$work/wrapper" "$tiny" "$work/scratch" brief & two=$!
wait $one; wait $two

step "cancelling is quick, and memory doesn't grow"
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

step "the same seed, the same bytes: Rust, C, C++, Python"
prompt="a red heart on a yellow background"
picture=$work/rust.png
"$built/generate" "$prompt" --seed 7 --quiet --out "$picture"
same() { cmp "$picture" "$1" || fail "$1 differs"; }
for program in c-OFF c-ON; do "$work/$program/generate" "$model" "$prompt" "$work/$program.png" 7 2>/dev/null; same "$work/$program.png"; done
"$work/generate" "$model" "$prompt" "$work/pkg.png" 7 2>/dev/null; same "$work/pkg.png"
for program in cpp-OFF cpp-ON; do
  "$work/$program/preview" --no-preview "$model" "$prompt" "$work/$program.png" 7 >/dev/null 2>&1; same "$work/$program.png"
done
HART_LIBRARY=$prefix/lib/libhart.so python3 "$root/examples/python/generate.py" "$prompt" --seed 7 --out "$work/python.png" 2>/dev/null
same "$work/python.png"

step "Python: its tests, and the wheel in a fresh environment"
(cd "$root/examples/python" && HART_LIBRARY=$prefix/lib/libhart.so python3 -B -m unittest -q test_hart)
python3 -m venv "$work/venv"
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
