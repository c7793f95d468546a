//! Scaled dot-product attention and the rotary embedding of its queries and keys.

use burn::prelude::*;
use burn::tensor::module;
use burn::tensor::ops::AttentionModuleOptions;

/// `softmax(scale * q k^T + bias) v`.
///
/// # Shapes
///
/// - query: `[B, H, L, d]`
/// - key, value: `[B, G, K, d]`, H a multiple of G
/// - bias: broadcast to `[B, H, L, K]`
/// - output: `[B, H, L, d]`
pub(crate) fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
    module::attention(query, key, value, None, bias, options)
}

/// Cosines and sines of a rotary embedding whose pairs are `(i, i + d/2)`, the halves of a head.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    cos: Tensor<4>, // [rows or 1, 1, seq, dim]
    sin: Tensor<4>,
}

impl Rotation {
    /// Places in a sequence: `angle = position * base^(-2i/d)`, the same angles in both halves. One list of positions a row.
    pub(crate) fn sequence(positions: &[Vec<f32>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 2, base);
        let angles = |&p: &f32| frequencies.iter().chain(&frequencies).map(|f| p * f).collect::<Vec<_>>();
        let rows = positions.iter().map(|row| row.iter().flat_map(angles).collect()).collect();
        Self::of(rows, head_dim, device)
    }

    /// Places in a picture: `base^(-4i/d)`, laid out as row, row, column, column. Since the halves of the whole head are turned
    /// against each other, the first half uses the row's angles and the second the column's. One list of (row, column) a row.
    pub(crate) fn picture(places: &[Vec<(f32, f32)>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 4, base);
        let angles = |&(r, c): &(f32, f32)| [r, r, c, c].map(|p| frequencies.iter().map(move |f| p * f)).into_iter().flatten();
        let rows = places.iter().map(|row| row.iter().flat_map(angles).collect()).collect();
        Self::of(rows, head_dim, device)
    }

    fn of(rows: Vec<Vec<f32>>, head_dim: usize, device: &Device) -> Self {
        let (count, length) = (rows.len(), rows[0].len() / head_dim);
        let angles = rows.concat();
        let shape = [count, 1, length, head_dim];
        // The angle is rounded to f32 as in the published code, its cosine and sine are exact.
        let map = |f: fn(f64) -> f64| angles.iter().map(|&a| f(f64::from(a)) as f32).collect();
        Self { cos: super::tensor(map(f64::cos), shape, device), sin: super::tensor(map(f64::sin), shape, device) }
    }

    /// The two one after the other, along the sequence.
    pub(crate) fn concat(parts: Vec<Self>) -> Self {
        let (cos, sin) = parts.into_iter().map(|r| (r.cos, r.sin)).unzip();
        Self { cos: Tensor::cat(cos, 2), sin: Tensor::cat(sin, 2) }
    }

    /// Some places of the sequence.
    pub(crate) fn select(self, places: Tensor<1, Int>) -> Self {
        Self { cos: self.cos.select(2, places.clone()), sin: self.sin.select(2, places) }
    }

    /// `x cos + (-x2, x1) sin`, with x1 and x2 the halves of each head.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, L, d]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let turned = Tensor::cat(vec![x.clone().narrow(3, half, half).neg(), x.clone().narrow(3, 0, half)], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}

/// `base^(-step i / d)` for `i < d / step`.
fn frequencies(head_dim: usize, step: usize, base: f64) -> Vec<f32> {
    let exponent = |i: usize| (step * i) as f32 / head_dim as f32;
    (0..head_dim / step).map(|i| (1.0 / base.powf(f64::from(exponent(i)))) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{tensor, values};

    /// burn's CPU backend takes another body for `queries * keys` above this, one that never holds all scores.
    const ALL_SCORES: usize = 256 * 1024;

    fn waves(count: usize, speed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * speed).sin()).collect()
    }

    /// Both bodies against a plain softmax in f64, with grouped heads, with and without bias. A row that may look nowhere averages
    /// all values.
    #[test]
    fn attention_is_a_softmax_whatever_the_length() {
        let device = Device::flex();
        let (heads, groups, dim) = (4, 2, 8);
        for (queries, keys) in [(3, 5), (100, 3000)] {
            assert!((queries, keys) == (3, 5) || queries * keys > ALL_SCORES);
            let (q, k, v) = (waves(heads * queries * dim, 0.7), waves(groups * keys * dim, 0.31), waves(groups * keys * dim, 1.3));
            let mut bias: Vec<f32> = waves(queries * keys, 0.11).iter().map(|b| if *b > 0.5 { f32::MIN } else { *b }).collect();
            bias[..keys].fill(f32::MIN);
            for bias in [None, Some(bias)] {
                let scale = 0.4;
                let got = values(attention(
                    tensor(q.clone(), [1, heads, queries, dim], &device),
                    tensor(k.clone(), [1, groups, keys, dim], &device),
                    tensor(v.clone(), [1, groups, keys, dim], &device),
                    bias.clone().map(|bias| tensor(bias, [1, 1, queries, keys], &device)),
                    scale,
                ));
                for (row, got) in got.chunks(dim).enumerate() {
                    let (head, query) = (row / queries, row % queries);
                    let group = head / (heads / groups);
                    let key = |index: usize| &k[(group * keys + index) * dim..][..dim];
                    let score = |index: usize| {
                        let dot: f64 = q[row * dim..][..dim].iter().zip(key(index)).map(|(a, b)| f64::from(a * b)).sum();
                        let bias = bias.as_ref().map_or(0.0, |bias| bias[query * keys + index]);
                        // The most negative float swallows any score added to it.
                        if bias == f32::MIN { f64::from(f32::MIN) } else { dot * scale + f64::from(bias) }
                    };
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (channel, got) in got.iter().enumerate() {
                        let value = |index: usize| f64::from(v[(group * keys + index) * dim + channel]);
                        let want = weights.iter().enumerate().map(|(i, w)| w * value(i)).sum::<f64>() / sum;
                        assert!((f64::from(*got) - want).abs() < 1e-5, "{queries} x {keys}, row {row}: {got} and not {want}");
                    }
                }
            }
        }
    }

    /// The halves of a head are turned against each other, the first by the row's angles and the second by the column's.
    #[test]
    fn halves_are_rotated_by_row_and_column() {
        let device = Device::flex();
        let rotation = Rotation::picture(&[vec![(0.3, 1.1)]], 4, 10_000.0, &device);
        let got = values(rotation.apply(tensor(vec![1.0, 2.0, 3.0, 4.0], [1, 1, 1, 4], &device)));
        let (row, column) = (0.3f32, 1.1f32);
        let want = [
            row.cos() - 3.0 * row.sin(),
            2.0 * row.cos() - 4.0 * row.sin(),
            3.0 * column.cos() + column.sin(),
            4.0 * column.cos() + 2.0 * column.sin(),
        ];
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} {want:?}");
    }
}
