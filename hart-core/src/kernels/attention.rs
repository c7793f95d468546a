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

    /// For few keys and for so many that another body of the operation is taken.
    #[test]
    fn a_row_that_may_look_nowhere_averages_all_values() {
        let device = Device::flex();
        let waves = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        for keys in [5, 3000] {
            let query = tensor(waves(8), [1, 1, 2, 4], &device);
            let key = tensor(waves(keys * 4), [1, 1, keys, 4], &device);
            let value = tensor(waves(keys * 4), [1, 1, keys, 4], &device);
            let mut bias = vec![f32::MIN; 2 * keys];
            bias[keys + 1] = 0.0; // the second row sees the second key
            let bias = tensor(bias, [1, 1, 2, keys], &device);
            let got = values(attention(query, key, value, Some(bias), 0.5));
            let all = waves(keys * 4);
            for channel in 0..4 {
                let mean = all.iter().skip(channel).step_by(4).sum::<f32>() / keys as f32;
                assert!((got[channel] - mean).abs() < 1e-5, "{keys} keys: {} and not {mean}", got[channel]);
                assert!((got[4 + channel] - all[4 + channel]).abs() < 1e-6);
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
