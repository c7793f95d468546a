#!/usr/bin/env bash
# burn 0.22.1, burn-nn 0.22.1 (flex backend): GroupNorm refuses a valid tensor that holds two values.
#
# Guess before running: GroupNorm(1 group, 2 channels) of a tensor [1, 2, 1, 1] normalises the two values to -1 and 1, as PyTorch's
# nn.GroupNorm does; the documented condition is on the rank, "at least 3".
# Seen: the check compares the number of elements, not the rank, with 2. The rank-4 tensor of two values panics with
#   input rank for GroupNorm should be at least 3, but got 2
# while [1, 2, 1, 2], of the same rank with four values, is normalised.
# A feature map of one pixel and two channels, or a test with the smallest shapes, meets it.
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
use burn::nn::GroupNormConfig;
use burn::prelude::*;
use burn::tensor::DType;

fn norm(values: &[f32], width: usize) -> Vec<f32> {
    let device = Device::flex();
    let x = Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 2, 1, width]), (&device, DType::F32));
    let y = GroupNormConfig::new(1, 2).init(&device).forward(x);
    y.into_data().convert::<f32>().try_into_vec().unwrap()
}

fn main() {
    println!("four values: {:?}", norm(&[0.0, 2.0, 4.0, 6.0], 2));
    let two = std::panic::catch_unwind(|| norm(&[0.0, 2.0], 1));
    let text = two.err().and_then(|panic| panic.downcast_ref::<String>().cloned());
    println!("two values: {}", text.unwrap_or_else(|| "accepted".into()));
}
RUST
out=$(cargo run --quiet 2>/dev/null)
printf '%s\n' "$out"
grep -q '^four values: \[-1.34' <<<"$out" && grep -q '^two values: input rank for GroupNorm should be at least 3, but got 2$' <<<"$out"
