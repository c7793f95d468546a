#!/usr/bin/env bash
# zune-jpeg 0.5.15 with jpeg-encoder 0.7.1: a valid baseline JPEG decodes to wrong colours, without an error.
#
# Guess before running: a decoder that reads baseline JPEG reads what a baseline encoder writes, whatever its options, to a few levels.
# Seen: with optimised Huffman tables, jpeg-encoder writes a scan for each colour channel instead of one for all. zune-jpeg loses the
# last rows of blocks of every scan that another one follows, fills them with other values, and returns Ok, also in strict mode.
# A white image of 16 x 16 pixels comes back white from the file with one scan and coloured in places from the other.
# A progressive file of the same encoder, which has several scans as well, is read correctly.
#
# Needs cargo. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"
[dependencies]
jpeg-encoder = "=0.7.1"
zune-jpeg = "=0.5.15"
TOML
mkdir src
cat > src/main.rs <<'RUST'
use jpeg_encoder::{ColorType, Encoder};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Encodes and decodes a white image. Returns the largest error of a level.
fn error(optimised: bool, progressive: bool) -> u8 {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    encoder.set_optimized_huffman_tables(optimised);
    encoder.set_progressive(progressive);
    encoder.encode(&[255; 3 * 16 * 16], 16, 16, ColorType::Rgb).unwrap();
    let options = DecoderOptions::default().set_strict_mode(true);
    let pixels = JpegDecoder::new_with_options(ZCursor::new(&file), options).decode().unwrap();
    pixels.iter().map(|level| 255 - level).max().unwrap()
}

fn main() {
    println!("one scan: {}", error(false, false));
    println!("a scan per channel: {}", error(true, false));
    println!("progressive: {}", error(false, true));
}
RUST
out=$(cargo run --quiet 2>/dev/null)
printf '%s\n' "$out"
within() { sed -n "s/^$1: //p" <<<"$out"; }
[ "$(within 'one scan')" -le 5 ] && [ "$(within progressive)" -le 5 ] && [ "$(within 'a scan per channel')" -ge 50 ]
