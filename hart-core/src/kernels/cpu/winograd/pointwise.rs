//! Convolution with a 1x1 kernel: a matrix product over pixels.

use rayon::prelude::*;

use super::super::simd::SimdLevel;
use super::gemm::Product;
use super::value::Value;
use super::{ALIGN, CHUNK};

/// Pixels of a task.
const PIXELS: usize = 120;

/// Computes `y[pixel][o] = x[pixel] . w[o] + b[o]`, with w `[out][in]`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn convolve<T: Value>(level: SimdLevel, x: &[T], weights: &[f32], bias: &[f32]) -> Vec<T> {
    let out_channels = bias.len();
    assert!(
        out_channels > 0 && !weights.is_empty() && weights.len().is_multiple_of(out_channels),
        "one row of weights per output channel"
    );
    let in_channels = weights.len() / out_channels;
    assert!(x.len().is_multiple_of(in_channels), "whole pixels");
    // `[chunk][in][columns]`
    let panels: Vec<Vec<f32>> = weights.par_chunks(CHUNK * in_channels).map(|rows| panel_of(rows, in_channels)).collect();
    let mut y = T::zeros(x.len() / in_channels * out_channels);
    let tasks: Vec<_> = y.chunks_mut(PIXELS * out_channels).zip(x.chunks(PIXELS * in_channels)).collect();
    tasks.into_par_iter().for_each_init(
        || (vec![0.0; PIXELS * CHUNK], Vec::new()),
        |(products, widened), (y, x)| {
            let x = T::widen_all(x, widened);
            let rows = x.len() / in_channels;
            for (chunk, panel) in panels.iter().enumerate() {
                let columns = panel.len() / in_channels;
                level.run(Product { x, stride: in_channels, rows, panel, depth: in_channels, columns, y: products });
                let channels = chunk * CHUNK..out_channels.min((chunk + 1) * CHUNK);
                for (y, products) in y.chunks_mut(out_channels).zip(products.chunks(columns)) {
                    let y = y[channels.clone()].iter_mut();
                    y.zip(products).zip(&bias[channels.clone()]).for_each(|((y, product), bias)| *y = T::round(product + bias));
                }
            }
        },
    );
    y
}

/// Packs rows of weights into a panel `[in][columns]`, zero-padded to whole vectors.
fn panel_of(rows: &[f32], in_channels: usize) -> Vec<f32> {
    let columns = (rows.len() / in_channels).next_multiple_of(ALIGN);
    let mut panel = vec![0.0; in_channels * columns];
    for (column, row) in rows.chunks(in_channels).enumerate() {
        panel.iter_mut().skip(column).step_by(columns).zip(row).for_each(|(to, weight)| *to = *weight);
    }
    panel
}
