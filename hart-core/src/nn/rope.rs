//! The rotary embedding of queries and keys.

use burn::prelude::*;

use crate::kernels::{self, KeptTokens, Rotary};
use crate::math;

/// Cosines and sines of a rotary embedding whose pairs are `(i, i + d/2)`, the halves of a head.
#[derive(Clone, Debug)]
pub(crate) struct RotaryEmbedding {
    /// `[rows or 1, 1, tokens, head_dim]`.
    cos: Tensor<4>,
    /// `[rows or 1, 1, tokens, head_dim]`.
    sin: Tensor<4>,
}

impl RotaryEmbedding {
    /// Creates the embedding of a sequence: `angle = position * base^(-2i/d)`, the same angles in both halves.
    ///
    /// # Shapes
    ///
    /// - positions: `[rows][tokens]`
    pub(crate) fn sequence(positions: &[Vec<f32>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 2, base);
        let pairs = |&position: &f32| {
            let half: Vec<CosSin> = frequencies.iter().map(|frequency| cos_sin(position * frequency)).collect();
            [half.clone(), half].concat()
        };
        let shape = [positions.len(), 1, positions.first().map_or(0, Vec::len), head_dim];
        let (cos, sin) = positions.iter().flatten().flat_map(pairs).unzip();
        Self { cos: kernels::tensor(cos, shape, device), sin: kernels::tensor(sin, shape, device) }
    }

    /// Creates the embedding of a square image, row by row, with frequencies `base^(-4i/d)`. The first two quarters of a head have
    /// the angles of the row, the last two those of the column. Rotation pairs channel `i` with `i + d/2`. The first half of its
    /// output is therefore computed with the row's angles, and the second half with the column's.
    ///
    /// # Shapes
    ///
    /// - coordinates: those along a side, `[rows of the batch][side]`
    pub(crate) fn image(coordinates: &[Vec<f32>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 4, base);
        // Only the values of one side are computed on the host. The device repeats them for all positions.
        let pairs = |&coordinate: &f32| {
            let quarter: Vec<CosSin> = frequencies.iter().map(|frequency| cos_sin(coordinate * frequency)).collect();
            [quarter.clone(), quarter].concat()
        };
        let (rows, side) = (coordinates.len(), coordinates.first().map_or(0, Vec::len));
        let (cos, sin) = coordinates.iter().flatten().flat_map(pairs).unzip();
        let grid = |line: Vec<f32>| {
            let line: Tensor<4> = kernels::tensor(line, [rows, side, 1, head_dim / 2], device);
            let shape = [rows, side, side, head_dim / 2];
            let by_row = line.clone().expand(shape);
            let by_column = line.swap_dims(1, 2).expand(shape);
            Tensor::cat(vec![by_row, by_column], 3).reshape([rows, 1, side * side, head_dim]) // [rows, 1, tokens, head_dim]
        };
        Self { cos: grid(cos), sin: grid(sin) }
    }

    /// Returns the tables as kernels read them.
    pub(crate) fn tables(&self) -> Rotary<'_> {
        Rotary { cos: &self.cos, sin: &self.sin }
    }

    /// Concatenates embeddings along the tokens.
    pub(crate) fn concat(parts: Vec<Self>) -> Self {
        let (cos, sin) = parts.into_iter().map(|r| (r.cos, r.sin)).unzip();
        Self { cos: Tensor::cat(cos, 2), sin: Tensor::cat(sin, 2) }
    }

    /// Returns the embedding of the kept tokens of every row.
    pub(crate) fn kept(&self, kept: &KeptTokens) -> Self {
        let select = |table: &Tensor<4>| {
            let [rows, _, tokens, head_dim] = table.dims();
            let selected = kernels::select_tokens(table.clone().reshape([rows, tokens, head_dim]), kept);
            selected.reshape([rows, 1, kept.count(), head_dim]) // [rows, 1, kept tokens, head_dim]
        };
        Self { cos: select(&self.cos), sin: select(&self.sin) }
    }

    /// Selects tokens.
    pub(crate) fn select(self, tokens: Tensor<1, Int>) -> Self {
        Self { cos: self.cos.select(2, tokens.clone()), sin: self.sin.select(2, tokens) }
    }
}

/// Cosine and sine of an angle.
type CosSin = (f32, f32);

/// Computes the exact cosine and sine of an angle that is rounded to f32, as in the published code.
fn cos_sin(angle: f32) -> CosSin {
    let (sin, cos) = math::sin_cos(f64::from(angle));
    (cos as f32, sin as f32)
}

/// Returns `base^(-step i / d)` for `i < d / step`.
fn frequencies(head_dim: usize, step: usize, base: f64) -> Vec<f32> {
    let exponent = |i: usize| (step * i) as f32 / head_dim as f32;
    (0..head_dim / step).map(|i| (1.0 / math::pow(base, f64::from(exponent(i)))) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{tensor, values};

    /// The first half of a head is rotated by the row's angles and the second by the column's.
    #[test]
    fn halves_are_rotated_by_row_and_column() {
        let device = Device::flex();
        let rotation = RotaryEmbedding::image(&[vec![0.3, 1.1]], 4, 10_000.0, &device);
        // Four positions; the second one is in the first row and the second column.
        let x = tensor([1.0, 2.0, 3.0, 4.0].repeat(4), [1, 1, 4, 4], &device);
        let got = values(kernels::rotate(x, rotation.tables()).narrow(2, 1, 1));
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
