#!/usr/bin/env bash
# burn 0.22.1 (flex backend): interpolation aligns corners unless told otherwise.
#
# Guess before running: InterpolateOptions::new(Bicubic) resizes as torch.nn.functional.interpolate does by default, with
# align_corners = False, since burn's other defaults follow PyTorch.
# Seen: the default is align_corners = true. The row 0, 1, 2, 3 enlarged from four to seven values begins with 0.000 and ends with
# 3.000; with align_corners(false) the ends lie beyond the input, -0.099 and 3.099, which is PyTorch's default.
# The shapes agree and so does every smooth image at a glance: a ported model is off by up to half a pixel and nothing fails.
#
# Needs cargo and a C linker. Exits with 1 if the behaviour has changed.
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
burn = { version = "=0.22.1", default-features = false, features = ["std", "flex"] }
TOML
mkdir src
cat > src/main.rs <<'RUST'
use burn::prelude::*;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, module};

fn row(options: InterpolateOptions) -> String {
    let values: Vec<f32> = (0..16).map(|i| (i % 4) as f32).collect();
    let x = Tensor::<4>::from_data(TensorData::new(values, [1, 1, 4, 4]), (&Device::flex(), DType::F32));
    let y: Vec<f32> = module::interpolate(x, options).into_data().convert::<f32>().try_into_vec().unwrap();
    y[..7].iter().map(|v| format!("{v:.3}")).collect::<Vec<_>>().join(" ")
}

fn main() {
    let options = || InterpolateOptions::new(InterpolateMode::Bicubic).with_output_size([7, 7]);
    println!("default: {}", row(options()));
    println!("false: {}", row(options().with_align_corners(false)));
}
RUST
out=$(cargo run --quiet 2>/dev/null)
printf '%s\n' "$out"
grep -q '^default: 0.000 .* 3.000$' <<<"$out" && grep -q '^false: -0.099 .* 3.099$' <<<"$out"
