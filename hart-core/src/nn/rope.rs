//! The rotary embedding of queries and keys.

use burn::prelude::*;

use crate::kernels::{self, Rotary};

/// Cosines and sines of a rotary embedding whose pairs are `(i, i + d/2)`, the halves of a head.
#[derive(Clone, Debug)]
pub(crate) struct RotaryEmbedding {
    cos: Tensor<4>, // [rows or 1, 1, seq, dim]
    sin: Tensor<4>,
}

impl RotaryEmbedding {
    /// Places in a sequence: `angle = position * base^(-2i/d)`, the same angles in both halves. One list of positions a row.
    pub(crate) fn sequence(positions: &[Vec<f32>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 2, base);
        let turns = |row: &Vec<f32>| {
            let one = |&p: &f32| {
                let half: Vec<Turn> = frequencies.iter().map(|f| turn(p * f)).collect();
                [half.clone(), half].concat()
            };
            row.iter().flat_map(one).collect()
        };
        Self::of(positions.iter().map(turns).collect(), head_dim, device)
    }

    /// All places of a square picture, row by row: `base^(-4i/d)`, laid out as row, row, column, column. Since the halves of the whole
    /// head are turned against each other, the first half uses the row's angles and the second the column's. One list of the
    /// coordinates along a side a row of the batch.
    pub(crate) fn image(sides: &[Vec<f32>], head_dim: usize, base: f64, device: &Device) -> Self {
        let frequencies = frequencies(head_dim, 4, base);
        // Of a side only, twice; a picture of thousands of places is laid out where it is needed.
        let turns = |&place: &f32| {
            let quarter: Vec<Turn> = frequencies.iter().map(|f| turn(place * f)).collect();
            [quarter.clone(), quarter].concat()
        };
        let (rows, side) = (sides.len(), sides.first().map_or(0, Vec::len));
        let (cos, sin) = sides.iter().flatten().flat_map(turns).unzip();
        let grid = |line: Vec<f32>| {
            let line: Tensor<4> = kernels::tensor(line, [rows, side, 1, head_dim / 2], device);
            let places = [rows, side, side, head_dim / 2];
            let by_row = line.clone().expand(places);
            let by_column = line.swap_dims(1, 2).expand(places);
            Tensor::cat(vec![by_row, by_column], 3).reshape([rows, 1, side * side, head_dim])
        };
        Self { cos: grid(cos), sin: grid(sin) }
    }

    fn of(rows: Vec<Vec<Turn>>, head_dim: usize, device: &Device) -> Self {
        let shape = [rows.len(), 1, rows.first().map_or(0, Vec::len) / head_dim, head_dim];
        let (cos, sin) = rows.into_iter().flatten().unzip();
        Self { cos: kernels::tensor(cos, shape, device), sin: kernels::tensor(sin, shape, device) }
    }

    /// Returns the tables as kernels read them.
    pub(crate) fn tables(&self) -> Rotary<'_> {
        Rotary { cos: &self.cos, sin: &self.sin }
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
}

/// Cosine and sine of an angle.
type Turn = (f32, f32);

/// The angle is rounded to f32 as in the published code, its cosine and sine are exact.
fn turn(angle: f32) -> Turn {
    let (sin, cos) = f64::from(angle).sin_cos();
    (cos as f32, sin as f32)
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

    /// The halves of a head are turned against each other, the first by the row's angles and the second by the column's.
    #[test]
    fn halves_are_rotated_by_row_and_column() {
        let device = Device::flex();
        let rotation = RotaryEmbedding::image(&[vec![0.3, 1.1]], 4, 10_000.0, &device);
        // Four places; the second lies in the first row and the second column.
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
