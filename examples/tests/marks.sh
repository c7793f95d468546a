#!/usr/bin/env bash
# Tests that other programs understand the marks in image files: marks.sh [PYTHON].
# Needs exiftool in PATH, a PYTHON with the package sd-parsers, and the programs built:
# cargo build --release --workspace --features hart-examples/evaluate
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
programs=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
prompt='a "red" <heart>, é & 🦜'

generate() { "$programs/generate" --quiet "$@"; }
check() { "$python" examples/tests/marks.py "$@"; }
# Fails if a command does not fail with these words on standard error.
refuses() {
  local words=$1
  shift
  if "$@" 2>"$work/error"; then
    echo "expected an error that says: $words"
    exit 1
  fi
  grep -q "$words" "$work/error" || { cat "$work/error"; exit 1; }
}
# Fails if exiftool finds the words in a file.
lacks() {
  if exiftool -a -u -G1 "$2" | sed 1,/FileType/d | grep -i "$1"; then
    echo "$2 contains $1"
    exit 1
  fi
}

for format in png jpg webp; do
  image=$work/image.$format
  generate "$prompt" --seed 7 --guidance 2.5 --steps 6 --top-k 40 --out "$image"
  check "$image" "$prompt" trainedAlgorithmicMedia

  # The settings in the file generate the same image, and arguments replace them.
  generate --again "$image" --out "$work/again.$format"
  cmp "$image" "$work/again.$format"
  generate --again "$image" --seed 8 --out "$work/other.$format"
  refuses "differ" sh -c 'cmp "$1" "$2" >&2' sh "$image" "$work/other.$format"

  # Without the prompt, no reader finds it.
  private=$work/private.$format
  generate "$prompt" --seed 7 --guidance 2.5 --steps 6 --omit-marks prompt --out "$private"
  check "$private" "" trainedAlgorithmicMedia
  lacks '<heart>' "$private"
  refuses "the prompt was left out" generate --again "$private" --out "$work/again.$format"
  generate --again "$private" "$prompt" --out "$work/again.$format"
  plain=$work/plain.$format
  generate "$prompt" --seed 7 --omit-marks all --out "$plain"
  lacks 'hart \|Algorithmic\|Seed\|Settings' "$plain"
  refuses "has no settings of hart" generate --again "$plain"
done

# An animation is marked in every format.
for format in gif png; do
  "$programs/preview" "a red heart" --seed 7 --out "$work/still.png" --animation "$work/scales.$format" >/dev/null 2>&1
  exiftool -a -u -G1 "$work/scales.$format" | grep -q 'Digital Source Type.*/trainedAlgorithmicMedia' || { echo "scales.$format is not marked"; exit 1; }
done
if exiftool -validate -warning -a "$work/scales.gif" | grep -i warning; then exit 1; fi

# An edit is a composite, and can't be repeated without its image.
"$programs/edit" "$work/image.png" "$prompt" --vary 3 --seed 7 --guidance 2.5 --steps 6 --out "$work/edit.webp"
check "$work/edit.webp" "$prompt" compositeWithTrainedAlgorithmicMedia
refuses "edited from (variation of an image)" generate --again "$work/edit.webp"
