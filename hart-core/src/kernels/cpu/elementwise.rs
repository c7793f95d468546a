//! Element-wise operations on slices, on all threads. The loops are plain Rust that the compiler vectorises.

use rayon::prelude::*;

use super::simd::{LoopKernel, MAGIC_BIAS, SimdLevel};

/// Values in a task.
const CHUNK: usize = 16 * 1024;

/// Computes `e^x` in place.
pub(super) fn exp_in_place(x: &mut [f32]) {
    map_in_place(x, [], |x, []| exp(x));
}

/// Computes `silu(x)` in place.
pub(super) fn silu(x: &mut [f32]) {
    map_in_place(x, [], |x, []| silu_of(x));
}

/// Replaces each gate by `silu(gate) * up`.
///
/// # Panics
///
/// If their lengths differ.
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    map_in_place(gate, [up], |gate, [up]| silu_of(gate) * up);
}

/// Replaces the gradient of `silu(x)` by that of x.
///
/// # Panics
///
/// If their lengths differ.
#[cfg(feature = "train")]
pub(super) fn silu_gradient(dy: &mut [f32], x: &[f32]) {
    map_in_place(dy, [x], |dy, [x]| dy * silu_derivative(x));
}

/// Replaces the gradient of `silu(gate) * up` by that of the gate.
///
/// # Panics
///
/// If their lengths differ.
#[cfg(feature = "train")]
pub(super) fn silu_mul_gradient(dy: &mut [f32], gate: &[f32], up: &[f32]) {
    map_in_place(dy, [gate, up], |dy, [gate, up]| dy * up * silu_derivative(gate));
}

/// Replaces every value of `x` by `map` of it and of the corresponding values of the other slices.
fn map_in_place<const N: usize>(x: &mut [f32], others: [&[f32]; N], map: impl Fn(f32, [f32; N]) -> f32 + Copy + Sync) {
    assert!(others.iter().all(|other| other.len() == x.len()), "all lengths are equal");
    let level = SimdLevel::best();
    x.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, x)| {
        let others = others.map(|other| &other[chunk * CHUNK..][..x.len()]);
        level.run_loop(MapInPlace { x, others, map });
    });
}

/// One chunk of [`map_in_place`].
struct MapInPlace<'a, const N: usize, F> {
    x: &'a mut [f32],
    others: [&'a [f32]; N],
    map: F,
}

impl<const N: usize, F: Fn(f32, [f32; N]) -> f32> LoopKernel for MapInPlace<'_, N, F> {
    #[inline(always)]
    fn run(self) {
        // Slices of one length, so that the compiler removes the bounds checks from the loop.
        let others = self.others.map(|other| &other[..self.x.len()]);
        for (i, x) in self.x.iter_mut().enumerate() {
            *x = (self.map)(*x, others.map(|other| other[i]));
        }
    }
}

/// Returns `x * sigmoid(x)`.
#[inline(always)]
pub(super) fn silu_of(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns the derivative of SiLU: `s (1 + x (1 - s))` with s = sigmoid(x).
#[cfg(feature = "train")]
#[inline(always)]
pub(super) fn silu_derivative(x: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-x));
    s * (1.0 + x * (1.0 - s))
}

/// Returns e^x to 2 units in the last place, without a branch: with x = n ln 2 + r, e^x is 2^n times a polynomial of r (Cephes' `expf`).
/// Arguments are clamped to the range of f32; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const RANGE: (f32, f32) = (-87.3, 88.3);
    // ln 2 in two parts, of which the first has few enough bits for an exact product with n.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(RANGE.0, RANGE.1);
    let biased = x * std::f32::consts::LOG2_E + MAGIC_BIAS;
    let n = biased - MAGIC_BIAS;
    let r = (x - n * LN_2.0) - n * LN_2.1;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = p * r * r + r + 1.0;
    // 2^n from the lowest bits of the biased float: the compiler would not vectorise a conversion to an integer.
    power * f32::from_bits(biased.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_the_last_digits() {
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01 + 0.003_7;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.5e-7, "exp({x}) is {} and not {want}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp(1e30).is_finite() && exp(-1e30) > 0.0);
    }

    #[test]
    fn silu_is_x_times_its_sigmoid() {
        let x: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let up: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.11).cos()).collect();
        let (mut plain, mut gated) = (x.clone(), x.clone());
        silu(&mut plain);
        silu_mul(&mut gated, &up);
        for i in 0..x.len() {
            let want = f64::from(x[i]) / (1.0 + (-f64::from(x[i])).exp());
            assert!((f64::from(plain[i]) - want).abs() <= 5e-7 * want.abs(), "silu({}) is {} and not {want}", x[i], plain[i]);
            assert!((f64::from(gated[i]) - want * f64::from(up[i])).abs() <= 6e-7 * want.abs());
        }
        let mut ends = [f32::NAN, f32::INFINITY, -1e30, 0.0];
        silu(&mut ends);
        assert!(ends[0].is_nan() && ends[1] == f32::INFINITY && ends[2].abs() < 1e-5 && ends[3] == 0.0, "{ends:?}");
    }
}
