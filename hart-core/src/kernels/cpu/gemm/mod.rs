//! Matrix products of linear layers: `y[m][n] = x[m] . w[n] + bias[n]`, where x is `[rows, inputs]` and w is `[outputs, inputs]`.
//!
//! Terms are those of BLIS: m runs over rows, n over outputs and k over inputs. A micro-kernel computes a register block of `mr` rows
//! by some panels of `nr` outputs. The elements along k that fill a dword are a k-group: one f32, two bf16 or four int8, as in the VNNI
//! layout.
//!
//! [`gemv`] and [`blocked`] compute in f32 and read weights in f32 or half precision in place from the mapped checkpoint. `gemv`
//! packs nothing and is faster for few rows; `blocked` packs a block at a time. [`bf16`] and [`int8`] take weights that were
//! quantised and packed before. Within each of them, a row's result does not depend on the other rows.

mod amx;
#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "aarch64")]
mod arm_pairs;
mod bf16;
mod blocked;
mod epilogue;
#[cfg(any(test, not(any(target_arch = "aarch64", target_arch = "x86_64"))))]
mod f16;
mod gemv;
mod int8;
mod int8_rows;
mod isa;
mod microkernel;
mod packing;
mod stored;
#[cfg(any(test, feature = "train"))]
mod transposed;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use bf16::{Bf16Rows, Bf16Weights};
pub(crate) use int8::Int8Weights;
pub(crate) use int8_rows::Int8Rows;
pub(crate) use packing::NR;
pub(crate) use stored::StoredRows;

use super::simd::SimdLevel;

/// Number of rows up to which [`gemv`] is at least as fast as [`blocked`] (docs/performance-log.md).
const GEMV_MAX_ROWS: usize = 64;

/// Appends `x[m] . w[n] + bias[n]` to y, for rows m of x and n of w of `inputs` values each.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn matmul(x: &[f32], w: StoredRows<'_>, bias: Option<&[f32]>, inputs: usize, y: &mut Vec<f32>) {
    let (rows, _) = checked_sizes(x, w, bias, inputs);
    let matmul = if rows <= GEMV_MAX_ROWS { gemv::matmul } else { blocked::matmul };
    matmul(SimdLevel::best(), x, w, bias, inputs, y);
}

/// Returns `true` if products of bf16 are faster than those of f32.
#[cfg(feature = "train")]
pub(super) fn bf16_is_fast() -> bool {
    SimdLevel::best().has_bf16()
}

/// Returns the numbers of rows and outputs.
///
/// # Panics
///
/// If the lengths do not fit together.
fn checked_sizes(x: &[f32], w: StoredRows<'_>, bias: Option<&[f32]>, inputs: usize) -> (usize, usize) {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs) && w.len().is_multiple_of(inputs), "rows must be whole");
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert!(bias.is_none_or(|b| b.len() == outputs), "one bias for each output");
    (rows, outputs)
}

/// Returns the memory after a vector's last element, where the caller has reserved room.
fn spare(y: &mut Vec<f32>) -> *mut f32 {
    y.spare_capacity_mut().as_mut_ptr().cast()
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernels::testing::waves_f64;

    type Matmul = fn(SimdLevel, &[f32], StoredRows<'_>, Option<&[f32]>, usize, &mut Vec<f32>);
    const IMPLEMENTATIONS: [Matmul; 2] = [gemv::matmul, blocked::matmul];

    fn matmul_with(matmul: Matmul, level: SimdLevel, x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f32> {
        let mut y = vec![];
        matmul(level, x, w.into(), bias, inputs, &mut y);
        y
    }

    #[test]
    fn every_size_is_a_sum_of_products() {
        for (level, matmul) in SimdLevel::all().flat_map(|level| IMPLEMENTATIONS.map(|matmul| (level, matmul))) {
            for inputs in [1, 7, 16, 31, 64, 1000, 4101] {
                for (rows, outputs) in [(1, 1), (2, 5), (3, 6), (4, 13), (9, 50), (13, 101), (1, 6), (0, 3), (3, 0)] {
                    let (x, w, bias) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3), waves_f64(outputs, 0.4));
                    let got = matmul_with(matmul, level, &x, &w, Some(&bias), inputs);
                    assert_eq!(got.len(), rows * outputs);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / outputs, i % outputs);
                        let products = (0..inputs).map(|k| f64::from(x[m * inputs + k]) * f64::from(w[n * inputs + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (inputs as f64).sqrt().max(4.0),
                            "{level:?} {rows} x {outputs} x {inputs}: {got} and not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let inputs = 2348;
        let (x, w) = (waves_f64(97 * inputs, 0.7), waves_f64(61 * inputs, 1.3));
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        for matmul in IMPLEMENTATIONS {
            let all = matmul_with(matmul, SimdLevel::best(), &x, &w, None, inputs);
            for count in [1, 2, 3, 5, 64] {
                let some = matmul_with(matmul, SimdLevel::best(), &x[..count * inputs], &w, None, inputs);
                assert!(same(&some, &all), "{count} rows");
                let last = matmul_with(matmul, SimdLevel::best(), &x[(97 - count) * inputs..], &w, None, inputs);
                assert!(same(&last, &all[(97 - count) * 61..]), "last {count} rows");
            }
        }
    }

    /// All but the first level have fused multiply-add.
    #[test]
    fn a_sum_has_the_same_order_in_vectors_of_any_width() {
        for (rows, inputs, outputs) in [(1, 7, 5), (2, 19, 9), (3, 4101, 101), (70, 1600, 50)] {
            let (x, w) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3));
            for matmul in IMPLEMENTATIONS {
                let bits =
                    |level| matmul_with(matmul, level, &x, &w, None, inputs).into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let levels: Vec<_> = SimdLevel::all().skip(1).map(bits).collect();
                assert!(levels.windows(2).all(|pair| pair[0] == pair[1]), "{rows} x {outputs} x {inputs}");
            }
        }
    }

    #[test]
    fn half_precision_gives_the_bits_of_the_same_values_in_f32() {
        for (rows, inputs, outputs) in [(1, 7, 5), (3, 4101, 101), (70, 1600, 50)] {
            let (x, w) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3));
            let bf16s: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let f16s: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let wide: [Vec<f32>; 2] = [bf16s.iter().map(|w| w.to_f32()).collect(), f16s.iter().map(|w| w.to_f32()).collect()];
            for (level, matmul) in SimdLevel::all().flat_map(|level| IMPLEMENTATIONS.map(|matmul| (level, matmul))) {
                for (stored, wide) in [StoredRows::Bf16(&bf16s), StoredRows::F16(&f16s)].into_iter().zip(&wide) {
                    let mut y = vec![];
                    matmul(level, &x, stored, None, inputs, &mut y);
                    assert_eq!(y, matmul_with(matmul, level, &x, wide, None, inputs), "{level:?} {rows} x {outputs} x {inputs}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows must be whole")]
    fn rows_that_are_not_whole_are_refused() {
        matmul(&[0.0; 7], StoredRows::F32(&[0.0; 6]), None, 3, &mut vec![]);
    }
}
