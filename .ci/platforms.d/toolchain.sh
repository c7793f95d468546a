# Toolchains for other platforms. The scripts of this folder source it.
#
#   toolchain TARGET [PACKAGE...]   provides Rust for TARGET, and Debian packages such as a linker and an emulator
#   run COMMAND...                  runs a command with that toolchain, in the repository
#   $root                           the repository
#   $CARGO_TARGET_DIR               the folder of what `run cargo` builds
#   images NAME COMMAND...          generates the images that platforms are compared by, with `generate` as COMMAND runs it
#   step TEXT, fail TEXT            report
#
# If rustup has TARGET (`rustup target add TARGET`), commands run on this machine. Otherwise they run in a folder with Debian sid, whose
# Rust has the standard libraries of other platforms, or their sources. That needs root on a Debian machine. Paths are the same inside
# and outside; inside, HOME is /root. Variables for a command: `run env NAME=VALUE COMMAND`.
#
# HART_PLATFORMS names the folder of everything that is downloaded or built (default: target/platforms).
# HART_PLATFORMS_RUST=debian takes Debian's Rust even if rustup has the target.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=${HART_PLATFORMS:-$root/target/platforms}
debian=$work/debian

step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
fail() { echo "${0##*/}: $*" >&2; exit 1; }

# 16 images in each precision. images.py compares them.
images() {
  local precision folder
  for precision in f32 bf16 int8; do
    folder=$work/images/$1/$precision
    rm -rf "$folder"
    mkdir -p "$folder"
    "${@:2}" --prompts "$root/.ci/platforms.d/prompts.txt" -n 2 --seed 7 --precision $precision --quiet --out "$folder/{n}.png"
  done
}

toolchain() {
  local target=$1
  shift
  mkdir -p "$work"
  work=$(cd "$work" && pwd) debian=$work/debian
  if [ "${HART_PLATFORMS_RUST:-}" != debian ] && command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    inside=no
    export CARGO_TARGET_DIR=$work/build
    install_packages "$@"
  else
    inside=yes
    export CARGO_TARGET_DIR=$work/build-debian
    make_debian
    install_packages "$@"
  fi
}

# Installs those packages that are missing, where commands run. Rust comes from rustup if that has the target.
install_packages() {
  local package missing=()
  for package; do
    case $inside:$package in no:rustc | no:rust-src | no:libstd-rust-dev*) continue ;; esac
    case $package in *:*) run dpkg --add-architecture "${package#*:}" ;; esac
    run dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  run apt-get update -qq
  run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Makes the folder with Debian sid, from the same mirror as this system.
make_debian() {
  [ "$(id -u)" = 0 ] || fail "run as root, or install the target: rustup target add TARGET"
  [ -e "$debian/ready" ] || {
    step "Debian sid in $debian"
    command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq debootstrap; }
    local mirror
    mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null) || true
    [ -n "$mirror" ] || mirror=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}' /etc/apt/sources.list)
    [ -n "$mirror" ] || fail "no Debian mirror in /etc/apt: install the target with rustup instead"
    rm -rf "$debian"
    debootstrap --variant=minbase --include=ca-certificates sid "$debian" "$mirror"
    cp -r /etc/ssl/certs/. "$debian/etc/ssl/certs/"
    # A mirror may be a snapshot of the past.
    echo 'Acquire::Check-Valid-Until "false";' >"$debian/etc/apt/apt.conf.d/99snapshot"
    touch "$debian/ready"
  }
  cp -L /etc/resolv.conf "$debian/etc/resolv.conf"
  install_packages rustc cargo gcc libc6-dev
}

run() {
  if [ "$inside" = yes ]; then in_debian "$@"; else (cd "$root" && "$@"); fi
}

# Runs a command in the folder with Debian. Mounts last as long as the command. Downloaded crates are shared with this system.
in_debian() {
  local cargo=${CARGO_HOME:-$HOME/.cargo}
  mkdir -p "$cargo/registry" "$debian/root/.cargo/registry" "$debian$root" "$debian$work" "$work"
  unshare --mount bash -euc '
    debian=$1 root=$2 work=$3 registry=$4
    shift 4
    mount --bind "$root" "$debian$root"
    case $work in "$root"/*) ;; *) mount --bind "$work" "$debian$work" ;; esac
    mount --bind "$registry" "$debian/root/.cargo/registry"
    mount --bind /dev "$debian/dev"
    mount --bind /proc "$debian/proc"
    exec chroot "$debian" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TMPDIR=/tmp CARGO_TARGET_DIR="$CARGO_TARGET_DIR" \
      SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$BASH" -c "cd \"\$0\" && exec \"\$@\"" "$root" "$@"
  ' in_debian "$debian" "$root" "$work" "$cargo/registry" "$@"
}
