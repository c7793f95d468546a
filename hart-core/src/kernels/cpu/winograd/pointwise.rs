//! Convolution with a 1x1 kernel: a matrix product over pixels.

use rayon::prelude::*;

use super::super::simd::SimdLevel;
use super::gemm::Product;
use super::{ALIGN, CHUNK};

/// Pixels of a task.
const PIXELS: usize = 120;

/// Computes `y[pixel][o] = x[pixel] . w[o] + b[o]`, with w `[to][from]`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn convolve(level: SimdLevel, x: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let to = bias.len();
    assert!(to > 0 && !weights.is_empty() && weights.len().is_multiple_of(to), "one row of weights per output channel");
    let from = weights.len() / to;
    assert!(x.len().is_multiple_of(from), "whole pixels");
    // `[chunk][from][columns]`
    let panels: Vec<Vec<f32>> = weights.par_chunks(CHUNK * from).map(|rows| panel_of(rows, from)).collect();
    let mut y = vec![0.0; x.len() / from * to];
    let tasks: Vec<_> = y.chunks_mut(PIXELS * to).zip(x.chunks(PIXELS * from)).collect();
    tasks.into_par_iter().for_each_init(
        || vec![0.0; PIXELS * CHUNK],
        |products, (y, x)| {
            let rows = x.len() / from;
            for (chunk, panel) in panels.iter().enumerate() {
                let columns = panel.len() / from;
                level.run(Product { x, stride: from, rows, panel, depth: from, columns, y: products });
                let channels = chunk * CHUNK..to.min((chunk + 1) * CHUNK);
                for (y, products) in y.chunks_mut(to).zip(products.chunks(columns)) {
                    let y = y[channels.clone()].iter_mut();
                    y.zip(products).zip(&bias[channels.clone()]).for_each(|((y, product), bias)| *y = product + bias);
                }
            }
        },
    );
    y
}

/// Packs rows of weights into a panel `[from][columns]`, zero-padded to whole vectors.
fn panel_of(rows: &[f32], from: usize) -> Vec<f32> {
    let columns = (rows.len() / from).next_multiple_of(ALIGN);
    let mut panel = vec![0.0; from * columns];
    for (column, row) in rows.chunks(from).enumerate() {
        panel.iter_mut().skip(column).step_by(columns).zip(row).for_each(|(to, weight)| *to = *weight);
    }
    panel
}
