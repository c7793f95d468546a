//! Norms of rows over slices, with what follows them, on all cores: plain Rust that the compiler vectorises.

use rayon::prelude::*;

use super::lanes::{Level, Loop};
use super::memory;

/// Numbers that a task takes, in whole rows.
const TASK: usize = 32 * 1024;
/// Sums that are kept side by side, so that the compiler may use vectors.
const SUMS: usize = 16;

/// How a row is brought to a common size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Norm {
    /// Divided by the root of its mean square.
    RootMeanSquare,
    /// Moved to mean 0, then as above.
    MeanAndVariance,
}

/// Rows of the numbers that go with each row of x; several rows of x may share one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// Row after row, from the first one's first number on.
    pub(super) values: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
    /// Rows of x that share one.
    pub(super) shared: usize,
}

impl<'a> Rows<'a> {
    fn row(&self, index: usize, width: usize) -> &'a [f32] {
        &self.values[index / self.shared * self.stride..][..width]
    }
}

/// What is done to a normed row, in this order; what isn't there does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct After<'a> {
    /// Times this ...
    pub(super) gain: Option<Rows<'a>>,
    /// ... plus this ...
    pub(super) bias: Option<Rows<'a>>,
    /// ... times one more than the first, plus the second.
    pub(super) modulation: Option<(Rows<'a>, Rows<'a>)>,
}

/// Norms every row of `width` numbers.
///
/// # Panics
///
/// If a row isn't whole, or numbers that go with a row are missing.
pub(super) fn norm(x: &[f32], width: usize, norm: Norm, epsilon: f32, after: After<'_>) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows must be whole");
    let (level, rows) = (Level::best(), (TASK / width).max(1));
    let mut y = memory::numbers(x.len());
    y.par_chunks_mut(rows * width).enumerate().for_each(|(task, y)| {
        let first = task * rows;
        level.run_loop(NormRows { x: &x[first * width..][..y.len()], y, width, norm, epsilon, after, first });
    });
    y
}

struct NormRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    width: usize,
    norm: Norm,
    epsilon: f32,
    after: After<'a>,
    /// Number of the first row.
    first: usize,
}

impl<'a> Loop for NormRows<'a> {
    #[inline(always)]
    fn run(self) {
        let width = self.width;
        for (index, (x, y)) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)).enumerate() {
            let count = width as f32;
            let mean = if self.norm == Norm::MeanAndVariance { sum(x, |v| v) / count } else { 0.0 };
            let square = |v: f32| (v - mean) * (v - mean);
            let factor = 1.0 / (sum(x, square) / count + self.epsilon).sqrt();
            for (y, x) in y.iter_mut().zip(x) {
                *y = (x - mean) * factor;
            }
            let row = |rows: Rows<'a>| rows.row(self.first + index, width);
            if let Some(gain) = self.after.gain.map(row) {
                y.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain);
            }
            if let Some(bias) = self.after.bias.map(row) {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
            if let Some((scale, shift)) = self.after.modulation.map(|(scale, shift)| (row(scale), row(shift))) {
                for ((y, scale), shift) in y.iter_mut().zip(scale).zip(shift) {
                    *y = *y * (scale + 1.0) + shift;
                }
            }
        }
    }
}

/// The sum of a row's numbers after a change.
#[inline(always)]
fn sum(row: &[f32], change: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<SUMS>();
    let mut sums = [0.0; SUMS];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += change(*value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| change(*value)).sum::<f32>()
}

/// `x + gate * y` in x's place; without a gate `x + y`.
///
/// # Panics
///
/// If a row isn't whole, or numbers that go with it are missing.
pub(super) fn add_gated(x: &mut [f32], y: &[f32], gate: Option<Rows<'_>>, width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width) && x.len() == y.len(), "rows must be whole");
    let (level, rows) = (Level::best(), (TASK / width).max(1));
    x.par_chunks_mut(rows * width).enumerate().for_each(|(task, x)| {
        let first = task * rows;
        level.run_loop(Add { y: &y[first * width..][..x.len()], x, gate, width, first });
    });
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    gate: Option<Rows<'a>>,
    width: usize,
    first: usize,
}

impl Loop for Add<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.width;
        for (index, (x, y)) in self.x.chunks_exact_mut(width).zip(self.y.chunks_exact(width)).enumerate() {
            match self.gate.map(|gate| gate.row(self.first + index, width)) {
                None => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
                Some(gate) => x.iter_mut().zip(y).zip(gate).for_each(|((x, y), gate)| *x += gate * y),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32 + 0.25).collect()
    }

    /// More rows than a task takes, an odd width, and rows that share their modulation.
    #[test]
    fn rows_are_normed_and_modulated_one_by_one() {
        let (rows, width, epsilon) = (8003, 37, 1e-3);
        let (x, gain, bias) = (waves(rows * width, 0.7), waves(width, 1.1), waves(width, 0.3));
        let modulation = waves(2 * 2 * width, 0.9); // Two rows of scale and shift.
        let shared = rows.div_ceil(2);
        let scale = Rows { values: &modulation, stride: 2 * width, shared };
        let shift = Rows { values: &modulation[width..], stride: 2 * width, shared };
        let all = |values| Some(Rows { values, stride: 0, shared: 1 });
        let after = After { gain: all(&gain), bias: all(&bias), modulation: Some((scale, shift)) };
        for kind in [Norm::RootMeanSquare, Norm::MeanAndVariance] {
            let (plain, all) = (norm(&x, width, kind, epsilon, After::default()), norm(&x, width, kind, epsilon, after));
            for row in [0, 1, 884, 885, 886, shared - 1, shared, rows - 1] {
                let values: Vec<f64> = x[row * width..][..width].iter().map(|&v| f64::from(v)).collect();
                let count = width as f64;
                let mean = if kind == Norm::RootMeanSquare { 0.0 } else { values.iter().sum::<f64>() / count };
                let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
                for (column, value) in values.iter().enumerate() {
                    let want = (value - mean) / (variance + f64::from(epsilon)).sqrt();
                    assert!((f64::from(plain[row * width + column]) - want).abs() < 1e-5, "{kind:?} {row} {column}");
                    let part = |offset: usize| f64::from(modulation[row / shared * 2 * width + offset + column]);
                    let want = want * f64::from(gain[column]) + f64::from(bias[column]);
                    let want = want * (part(0) + 1.0) + part(width);
                    assert!((f64::from(all[row * width + column]) - want).abs() < 2e-5, "{kind:?} {row} {column}");
                }
            }
        }
    }

    #[test]
    fn gates_are_multiplied_before_the_sum() {
        let (rows, width) = (5000, 19);
        let (x, y, gate) = (waves(rows * width, 0.7), waves(rows * width, 1.1), waves(rows * width, 0.3));
        let (mut gated, mut plain) = (x.clone(), x.clone());
        add_gated(&mut gated, &y, Some(Rows { values: &gate, stride: width, shared: 1 }), width);
        add_gated(&mut plain, &y, None, width);
        for i in 0..x.len() {
            assert!((gated[i] - (x[i] + gate[i] * y[i])).abs() < 1e-6 && plain[i] == x[i] + y[i]);
        }
    }
}
