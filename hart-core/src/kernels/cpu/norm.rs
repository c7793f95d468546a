//! RMSNorm and LayerNorm fused with their affine parameters and modulation, and the gated addition of a residual branch.
//!
//! The loops over rows are plain Rust that the compiler vectorises.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use rayon::prelude::*;

use super::memory;
use super::simd::{LoopKernel, SimdLevel};
use super::tensor::{modify, primitive, slice, tensor};
use crate::kernels::params::Modulation;

/// Values in a task, rounded down to whole rows.
const TASK_VALUES: usize = 32 * 1024;
/// Partial sums of a reduction, so that the compiler may vectorise it.
const LANES: usize = 16;

/// The statistics by which a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum NormKind {
    /// RMSNorm: the mean square.
    Rms,
    /// LayerNorm: the mean and the variance.
    Layer,
}

/// Rows of a parameter, broadcast over the rows of x.
#[derive(Clone, Copy, Debug)]
pub(super) struct BroadcastRows<'a> {
    /// Starts with the first row.
    pub(super) values: &'a [f32],
    /// Distance from one row to the next.
    pub(super) stride: usize,
    /// Consecutive rows of x for each row.
    pub(super) repeats: usize,
}

impl<'a> BroadcastRows<'a> {
    /// Returns the row for row `index` of x.
    fn row(&self, index: usize, width: usize) -> &'a [f32] {
        &self.values[index / self.repeats * self.stride..][..width]
    }
}

/// Affine parameters and modulation of a normalised row: `(x * gain + bias) * (1 + scale) + shift`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Affine<'a> {
    pub(super) gain: Option<BroadcastRows<'a>>,
    pub(super) bias: Option<BroadcastRows<'a>>,
    /// Scale and shift.
    pub(super) modulation: Option<(BroadcastRows<'a>, BroadcastRows<'a>)>,
}

/// Normalises every row of `width` values.
///
/// # Panics
///
/// If the rows are not whole, or a parameter has too few values.
fn norm_rows(x: &[f32], width: usize, norm: NormKind, epsilon: f32, affine: Affine<'_>) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows must be whole");
    let (level, rows) = (SimdLevel::best(), (TASK_VALUES / width).max(1));
    let mut y = memory::unspecified(x.len());
    y.par_chunks_mut(rows * width).enumerate().for_each(|(task, y)| {
        let first = task * rows;
        level.run_loop(NormRows { x: &x[first * width..][..y.len()], y, width, norm, epsilon, affine, first });
    });
    y
}

/// The rows of one task of [`norm_rows`].
struct NormRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    width: usize,
    norm: NormKind,
    epsilon: f32,
    affine: Affine<'a>,
    /// Index of the first row.
    first: usize,
}

impl<'a> LoopKernel for NormRows<'a> {
    #[inline(always)]
    fn run(self) {
        let width = self.width;
        for (index, (x, y)) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)).enumerate() {
            let count = width as f32;
            // Normalise.
            let mean = if self.norm == NormKind::Layer { sum(x, |v| v) / count } else { 0.0 };
            let square = |v: f32| (v - mean) * (v - mean);
            let inverse = 1.0 / (sum(x, square) / count + self.epsilon).sqrt();
            for (y, x) in y.iter_mut().zip(x) {
                *y = (x - mean) * inverse;
            }
            // Apply the affine parameters and the modulation.
            let row = |rows: BroadcastRows<'a>| rows.row(self.first + index, width);
            if let Some(gain) = self.affine.gain.map(row) {
                y.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain);
            }
            if let Some(bias) = self.affine.bias.map(row) {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
            if let Some((scale, shift)) = self.affine.modulation.map(|(scale, shift)| (row(scale), row(shift))) {
                for ((y, scale), shift) in y.iter_mut().zip(scale).zip(shift) {
                    *y = *y * (scale + 1.0) + shift;
                }
            }
        }
    }
}

/// Returns the sum of `map` over a row.
#[inline(always)]
fn sum(row: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += map(*value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| map(*value)).sum::<f32>()
}

/// Adds `gate * y` to x in place, or y without a gate.
///
/// # Panics
///
/// If the rows are not whole, or the gate has too few values.
fn add_gated_rows(x: &mut [f32], y: &[f32], gate: Option<BroadcastRows<'_>>, width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width) && x.len() == y.len(), "rows must be whole");
    let (level, rows) = (SimdLevel::best(), (TASK_VALUES / width).max(1));
    x.par_chunks_mut(rows * width).enumerate().for_each(|(task, x)| {
        let first = task * rows;
        level.run_loop(AddRows { y: &y[first * width..][..x.len()], x, gate, width, first });
    });
}

/// The rows of one task of [`add_gated_rows`].
struct AddRows<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    gate: Option<BroadcastRows<'a>>,
    width: usize,
    /// Index of the first row.
    first: usize,
}

impl LoopKernel for AddRows<'_> {
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
    normalized(x, NormKind::Rms, epsilon, Some(gain), None, modulation)
}

/// See [`crate::kernels::layer_norm`].
pub(crate) fn layer_norm(
    x: &Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    normalized(x, NormKind::Layer, epsilon, gain, bias, modulation)
}

/// Normalises the rows of a tensor. Returns `None` if an operand is not on the CPU, not f32, or of another shape.
fn normalized(
    x: &Tensor<3>,
    norm: NormKind,
    epsilon: f64,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let x = primitive(x)?.to_contiguous();
    let per_channel = |param: &Tensor<1>| {
        let param = param.clone().reshape([1, 1, width]); // [1, 1, channels]
        RowParam::new(&param, [batch, length])
    };
    let (gain, bias) = (all_or_none(gain.map(per_channel))?, all_or_none(bias.map(per_channel))?);
    let scale = all_or_none(modulation.map(|m| RowParam::new(&m.scale, [batch, length])))?;
    let shift = all_or_none(modulation.map(|m| RowParam::new(&m.shift, [batch, length])))?;
    let affine = Affine {
        gain: gain.as_ref().map(RowParam::rows),
        bias: bias.as_ref().map(RowParam::rows),
        modulation: scale.as_ref().map(RowParam::rows).zip(shift.as_ref().map(RowParam::rows)),
    };
    let y = norm_rows(x.as_slice()?, width, norm, epsilon as f32, affine);
    Some(tensor(y, vec![batch, length, width]))
}

/// See [`crate::kernels::add_gated`].
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    let [batch, length, width] = x.dims();
    let gate = all_or_none(gate.map(|gate| RowParam::new(gate, [batch, length])));
    let (Some(gate), Some(branch), true) = (gate, primitive(&y), primitive(&x).is_some() && x.dims() == y.dims()) else {
        return Err((x, y));
    };
    let branch = branch.to_contiguous();
    let Ok(x) = x.try_into_primitive::<Flex>() else { unreachable!("checked above") };
    let sum = modify(x, |x| add_gated_rows(x, slice(&branch), gate.as_ref().map(RowParam::rows), width));
    Ok(Tensor::from_primitive::<Flex>(sum))
}

/// Returns `None` if an operand is rejected, which is `Some(None)`, and `Some(None)` if it is absent, which is `None`.
fn all_or_none<T>(operand: Option<Option<T>>) -> Option<Option<T>> {
    match operand {
        None => Some(None),
        Some(accepted) => accepted.map(Some),
    }
}

/// A parameter `[1 or B, 1 or L, C]` that is broadcast over the rows of a tensor `[B, L, C]`.
struct RowParam {
    tensor: FlexTensor,
    /// Offset of the first row in the tensor's storage.
    start: usize,
    stride: usize,
    repeats: usize,
}

impl RowParam {
    /// Returns `None` if the tensor is not on the CPU, not f32, or cannot be broadcast.
    fn new(param: &Tensor<3>, [batch, length]: [usize; 2]) -> Option<Self> {
        let [param_batch, param_length, width] = param.dims();
        let primitive = primitive(param)?;
        // A view of a larger tensor is used without a copy if its rows are contiguous and evenly spaced.
        let is_even = |strides: &[isize]| strides[2] == 1 && (param_batch == 1 || strides[0] == strides[1] * param_length as isize);
        let tensor = match is_even(primitive.layout().strides()) {
            true => primitive,
            false => primitive.to_contiguous(),
        };
        let start = tensor.layout().start_offset();
        let stride = match param_length {
            1 => tensor.layout().strides()[0],
            _ => tensor.layout().strides()[1],
        };
        let (stride, repeats) = match (param_batch == batch, param_length == length) {
            (true, true) => (stride, 1),
            (true, false) if param_length == 1 => (stride, length),
            (false, _) if param_batch == 1 && param_length == 1 => (0, 1),
            _ => return None,
        };
        let stride = usize::try_from(stride).ok()?;
        let last = (batch * length).saturating_sub(1) / repeats * stride;
        let fits = start + last + width <= tensor.storage::<f32>().len();
        fits.then_some(Self { tensor, start, stride, repeats })
    }

    /// Returns the rows.
    fn rows(&self) -> BroadcastRows<'_> {
        BroadcastRows { values: &self.tensor.storage::<f32>()[self.start..], stride: self.stride, repeats: self.repeats }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::kernels::testing::waves_f64;

    /// Returns waves around 0.25.
    fn waves(count: usize, speed: f64) -> Vec<f32> {
        waves_f64(count, speed).into_iter().map(|wave| wave + 0.25).collect()
    }

    /// With more rows than a task has, an odd width, and modulation that is broadcast.
    #[test]
    fn rows_are_normalized_and_modulated_one_by_one() {
        let (rows, width, epsilon) = (8003, 37, 1e-3);
        let (x, gain, bias) = (waves(rows * width, 0.7), waves(width, 1.1), waves(width, 0.3));
        let modulation = waves(2 * 2 * width, 0.9); // Two rows of scale and shift.
        let repeats = rows.div_ceil(2);
        let scale = BroadcastRows { values: &modulation, stride: 2 * width, repeats };
        let shift = BroadcastRows { values: &modulation[width..], stride: 2 * width, repeats };
        let all = |values| Some(BroadcastRows { values, stride: 0, repeats: 1 });
        let affine = Affine { gain: all(&gain), bias: all(&bias), modulation: Some((scale, shift)) };
        for kind in [NormKind::Rms, NormKind::Layer] {
            let (plain, all) =
                (norm_rows(&x, width, kind, epsilon, Affine::default()), norm_rows(&x, width, kind, epsilon, affine));
            for row in [0, 1, 884, 885, 886, repeats - 1, repeats, rows - 1] {
                let values: Vec<f64> = x[row * width..][..width].iter().map(|&v| f64::from(v)).collect();
                let count = width as f64;
                let mean = if kind == NormKind::Rms { 0.0 } else { values.iter().sum::<f64>() / count };
                let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
                for (column, value) in values.iter().enumerate() {
                    let want = (value - mean) / (variance + f64::from(epsilon)).sqrt();
                    assert!((f64::from(plain[row * width + column]) - want).abs() < 1e-5, "{kind:?} {row} {column}");
                    let part = |offset: usize| f64::from(modulation[row / repeats * 2 * width + offset + column]);
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
        add_gated_rows(&mut gated, &y, Some(BroadcastRows { values: &gate, stride: width, repeats: 1 }), width);
        add_gated_rows(&mut plain, &y, None, width);
        for i in 0..x.len() {
            assert!((gated[i] - (x[i] + gate[i] * y[i])).abs() < 1e-6 && plain[i] == x[i] + y[i]);
        }
    }
}
