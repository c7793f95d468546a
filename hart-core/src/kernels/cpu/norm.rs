//! Norms of rows over slices, with what follows them, on all cores: plain Rust that the compiler vectorises.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use rayon::prelude::*;

use super::memory;
use super::simd::{LoopKernel, SimdLevel};
use super::tensor::{modify, primitive, slice, tensor};
use crate::kernels::params::Modulation;

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
fn norm_rows(x: &[f32], width: usize, norm: Norm, epsilon: f32, after: After<'_>) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows must be whole");
    let (level, rows) = (SimdLevel::best(), (TASK / width).max(1));
    let mut y = memory::unspecified(x.len());
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

impl<'a> LoopKernel for NormRows<'a> {
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
fn add_gated_rows(x: &mut [f32], y: &[f32], gate: Option<Rows<'_>>, width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width) && x.len() == y.len(), "rows must be whole");
    let (level, rows) = (SimdLevel::best(), (TASK / width).max(1));
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

impl LoopKernel for Add<'_> {
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

/// See [`crate::kernels::rms_norm`].
pub(crate) fn rms_norm(x: &Tensor<3>, gain: &Tensor<1>, epsilon: f64, modulation: Option<&Modulation>) -> Option<Tensor<3>> {
    normalized(x, Norm::RootMeanSquare, epsilon, Some(gain), None, modulation)
}

/// See [`crate::kernels::layer_norm`].
pub(crate) fn layer_norm(
    x: &Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    normalized(x, Norm::MeanAndVariance, epsilon, gain, bias, modulation)
}

fn normalized(
    x: &Tensor<3>,
    norm: Norm,
    epsilon: f64,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let x = primitive(x)?.to_contiguous();
    let per_channel = |v: &Tensor<1>| PerRow::of(&v.clone().reshape([1, 1, width]), [batch, length]);
    let (gain, bias) = (all_or_none(gain.map(per_channel))?, all_or_none(bias.map(per_channel))?);
    let scale = all_or_none(modulation.map(|m| PerRow::of(&m.scale, [batch, length])))?;
    let shift = all_or_none(modulation.map(|m| PerRow::of(&m.shift, [batch, length])))?;
    let after = After {
        gain: gain.as_ref().map(PerRow::rows),
        bias: bias.as_ref().map(PerRow::rows),
        modulation: scale.as_ref().map(PerRow::rows).zip(shift.as_ref().map(PerRow::rows)),
    };
    let y = norm_rows(x.as_slice()?, width, norm, epsilon as f32, after);
    Some(tensor(y, vec![batch, length, width]))
}

/// See [`crate::kernels::add_gated`].
#[allow(clippy::result_large_err)] // What comes back are tensors, not an error.
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    let [batch, length, width] = x.dims();
    let gate = all_or_none(gate.map(|gate| PerRow::of(gate, [batch, length])));
    let (Some(gate), Some(branch), true) = (gate, primitive(&y), primitive(&x).is_some() && x.dims() == y.dims()) else {
        return Err((x, y));
    };
    let branch = branch.to_contiguous();
    let Ok(x) = x.try_into_primitive::<Flex>() else { unreachable!("it was one just above") };
    let sum = modify(x, |x| add_gated_rows(x, slice(&branch), gate.as_ref().map(PerRow::rows), width));
    Ok(Tensor::from_primitive::<Flex>(sum))
}

/// Nothing where nothing was asked for, and a refusal where what was asked for is not there.
fn all_or_none<T>(asked: Option<Option<T>>) -> Option<Option<T>> {
    match asked {
        None => Some(None),
        Some(found) => found.map(Some),
    }
}

/// A tensor `[1 or B, 1 or L, C]` that goes with the rows of another one, `[B, L, C]`.
struct PerRow {
    tensor: FlexTensor,
    start: usize,
    stride: usize,
    shared: usize,
}

impl PerRow {
    fn of(part: &Tensor<3>, [batch, length]: [usize; 2]) -> Option<Self> {
        let [batches, lengths, width] = part.dims();
        let primitive = primitive(part)?;
        // A part of something larger will do as it is, if its rows are whole and evenly spaced.
        let even = |strides: &[isize]| strides[2] == 1 && (batches == 1 || strides[0] == strides[1] * lengths as isize);
        let tensor = match even(primitive.layout().strides()) {
            true => primitive,
            false => primitive.to_contiguous(),
        };
        let start = tensor.layout().start_offset();
        let stride = match lengths {
            1 => tensor.layout().strides()[0],
            _ => tensor.layout().strides()[1],
        };
        let (stride, shared) = match (batches == batch, lengths == length) {
            (true, true) => (stride, 1),
            (true, false) if lengths == 1 => (stride, length),
            (false, _) if batches == 1 && lengths == 1 => (0, 1),
            _ => return None,
        };
        let stride = usize::try_from(stride).ok()?;
        let last = (batch * length).saturating_sub(1) / shared * stride;
        let fits = start + last + width <= tensor.storage::<f32>().len();
        fits.then_some(Self { tensor, start, stride, shared })
    }

    fn rows(&self) -> Rows<'_> {
        Rows { values: &self.tensor.storage::<f32>()[self.start..], stride: self.stride, shared: self.shared }
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
            let (plain, all) = (norm_rows(&x, width, kind, epsilon, After::default()), norm_rows(&x, width, kind, epsilon, after));
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
        add_gated_rows(&mut gated, &y, Some(Rows { values: &gate, stride: width, shared: 1 }), width);
        add_gated_rows(&mut plain, &y, None, width);
        for i in 0..x.len() {
            assert!((gated[i] - (x[i] + gate[i] * y[i])).abs() < 1e-6 && plain[i] == x[i] + y[i]);
        }
    }
}
