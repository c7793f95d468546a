#!/bin/sh
# Builds hart's C library and installs it with its headers, pkg-config files, CMake package and Python module, for Linux, macOS or
# Windows.
set -eu

usage() {
  cat <<'TEXT'
usage: hart-ffi/install.sh --prefix DIR [--target TRIPLE] [--features LIST] [--profile NAME] [--no-build]

  --prefix DIR      where lib, include and share are installed, such as /usr/local or $HOME/hart
  --target TRIPLE   another platform to build for, such as x86_64-pc-windows-gnu, which rustup or the system's Rust must have
  --features LIST   features of hart-ffi, such as cuda-nvrtc
  --profile NAME    cargo profile of the library (default: dist, which is small and slow to compile)
  --no-build        install what `cargo build --profile NAME -p hart-ffi` has built (with the same --target)

Environment: DESTDIR is prepended to the prefix, for packagers. HART_COMMIT is the commit that hart_build_info reports;
the default is that of the repository. CC, AR, NM and OBJCOPY are the tools for the target.
TEXT
}

prefix='' build=yes profile='' features='' triple=${CARGO_BUILD_TARGET:-}
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --target | --features | --profile) [ $# -ge 2 ] || { usage >&2; exit 2; } ;;
  esac
  case $1 in
    --prefix) prefix=$2; shift 2 ;;
    --prefix=*) prefix=${1#--prefix=}; shift ;;
    --target) triple=$2; shift 2 ;;
    --target=*) triple=${1#--target=}; shift ;;
    --features) features=$2; shift 2 ;;
    --features=*) features=${1#--features=}; shift ;;
    --profile) profile=$2; shift 2 ;;
    --profile=*) profile=${1#--profile=}; shift ;;
    --no-build) build=no; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "install.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done
[ -n "$prefix" ] || { usage >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
# A published package of hart-ffi is not in the workspace, which defines the profile.
if ! grep -qs '^\[profile\.dist\]' "$root/Cargo.toml"; then root=$here profile=${profile:-release}; fi
profile=${profile:-dist}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
major=${version%%.*} minor=${version#*.} minor=${minor%%.*}

if [ "$build" = yes ]; then
  # A source archive has no commit, even if it was unpacked inside another repository.
  if [ -z "${HART_COMMIT:-}" ] && [ -e "$root/.git" ]; then
    HART_COMMIT=$(git -C "$root" rev-parse --short HEAD 2>/dev/null) || true
  fi
  HART_COMMIT=${HART_COMMIT:-unknown}
  export HART_COMMIT
  (cd "$root" && cargo build --profile "$profile" -p hart-ffi ${triple:+--target "$triple"} ${features:+--features "$features"})
fi
built=${CARGO_TARGET_DIR:-$root/target}/${triple:+$triple/}$profile
case $profile in dev) built=${built%dev}debug ;; esac

# Names of the built files, and the system libraries that the static one needs, which rustc prints with --print native-static-libs.
host=$(rustc -vV 2>/dev/null | sed -n 's/^host: //p') || true
archive=libhart.a installed_archive=libhart.a implib='' folder=lib tools=''
case ${triple:-${host:-$(uname -s)}} in
  *-linux-* | Linux)
    system=linux shared=libhart.so soname=libhart.so.0 file=libhart.so.$version
    native='-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc'
    [ "${triple:-$host}" = "$host" ] || tools=${triple%%-*}-linux-${triple##*-}- ;;
  *-apple-darwin | Darwin)
    system=macos shared=libhart.dylib soname=libhart.0.dylib file=libhart.$version.dylib
    native='-liconv -lSystem -lc -lm' ;;
  *-windows-gnu)
    system=windows shared=hart.dll soname=hart.dll file=hart.dll folder=bin implib=libhart.dll.a
    native='-lkernel32 -lntdll -luserenv -lws2_32 -ldbghelp'
    tools=${triple:+${triple%%-*}-w64-mingw32-} ;;
  *-windows-msvc)
    system=windows shared=hart.dll soname=hart.dll file=hart.dll folder=bin implib=hart.dll.lib
    archive=hart.lib installed_archive=hart-static.lib
    native='kernel32.lib ntdll.lib userenv.lib ws2_32.lib dbghelp.lib' ;;
  *) echo "install.sh: supports Linux, macOS and Windows; docs/c-abi.md lists the files to install" >&2; exit 1 ;;
esac
cc=${CC:-${tools:+${tools}gcc}} cc=${cc:-cc} ar=${AR:-${tools}ar} nm=${NM:-${tools}nm} objcopy=${OBJCOPY:-${tools}objcopy}

for library in "$built/$shared" "$built/$archive" ${implib:+"$built/$implib"}; do
  [ -f "$library" ] || { echo "install.sh: no $library: leave out --no-build, or pass the --profile that was built" >&2; exit 1; }
done

target=${DESTDIR:-}$prefix
mkdir -p "$target/lib/pkgconfig" "$target/lib/cmake/hart" "$target/include" "$target/$folder"
# Replaces files atomically: running programs may have the old ones open.
install_file() { cp "$1" "$2.new" && chmod "$3" "$2.new" && mv -f "$2.new" "$2"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install_file "$built/$shared" "$target/$folder/$file" 755
if [ "$system" != windows ]; then
  ln -sf "$file" "$target/lib/$soname"
  ln -sf "$soname" "$target/lib/$shared"
fi

# The static library contains Rust's runtime. On Linux all symbols but hart_* become local, so that they can't clash with
# those of another Rust library.
static=$built/$archive
if [ "$system" = linux ] && command -v "$objcopy" >/dev/null && command -v "$nm" >/dev/null; then
  "$nm" -D --defined-only "$built/$shared" | sed -n 's/.* \(hart_[a-z0-9_]*\)$/\1/p' >"$work/symbols"
  # shellcheck disable=SC2046 # one argument per symbol
  $cc -nostdlib -r -Wl,--gc-sections $(sed 's/^/-Wl,-u,/' "$work/symbols") "$static" -o "$work/whole.o"
  "$objcopy" --strip-debug -R .llvmbc -R .llvmcmd --keep-global-symbols="$work/symbols" "$work/whole.o" "$work/hart.o"
  "$ar" rcs "$work/libhart.a" "$work/hart.o"
  static=$work/libhart.a
fi
install_file "$static" "$target/lib/$installed_archive" 644

# Import libraries. MSVC and mingw have each its own form, and may link a DLL of the other.
if [ "$implib" = hart.dll.lib ]; then
  install_file "$built/$implib" "$target/lib/hart.lib" 644
elif [ -n "$implib" ]; then
  install_file "$built/$implib" "$target/lib/$implib" 644
  { printf 'LIBRARY hart.dll\nEXPORTS\n'; "$nm" --defined-only "$built/$implib" | sed -n 's/.* T \(hart_[a-z0-9_]*\)$/  \1/p' | LC_ALL=C sort; } >"$work/hart.def"
  install_file "$work/hart.def" "$target/lib/hart.def" 644
  if command -v llvm-dlltool >/dev/null; then
    llvm-dlltool -m i386:x86-64 -d "$work/hart.def" -l "$work/hart.lib"
    install_file "$work/hart.lib" "$target/lib/hart.lib" 644
  else
    echo "install.sh: without llvm-dlltool, lib/hart.lib is left out; for MSVC, make it with: lib /def:hart.def /machine:x64 /out:hart.lib" >&2
  fi
fi

install_file "$root/include/hart.h" "$target/include/hart.h" 644
install_file "$root/include/hart.hpp" "$target/include/hart.hpp" 644
install_file "$root/include/hart.cdef" "$target/include/hart.cdef" 644
# The module works with every version of Python, so it is not in lib/pythonX.Y. It finds the library in its prefix.
python=$root/examples/python/hart.py
if [ -f "$python" ]; then
  mkdir -p "$target/share/hart/python"
  install_file "$python" "$target/share/hart/python/hart.py" 644
fi
configure() {
  sed -e "s|@VERSION@|$version|g" -e "s|@MAJOR@|$major|g" -e "s|@MINOR@|$minor|g" -e "s|@NATIVE_LIBS@|$native|g" \
    -e "s|@SHARED@|$folder/$file|g" -e "s|@ARCHIVE@|$installed_archive|g" -e "s|@SONAME@|$soname|g" "$here/packaging/$1.in" >"$2/$1.new"
  mv -f "$2/$1.new" "$2/$1"
}
configure hart.pc "$target/lib/pkgconfig"
configure hart-static.pc "$target/lib/pkgconfig"
configure hartConfig.cmake "$target/lib/cmake/hart"
configure hartConfigVersion.cmake "$target/lib/cmake/hart"
echo "installed hart $version in $target"
if [ -f "$python" ]; then echo "Python: PYTHONPATH=$prefix/share/hart/python"; fi
