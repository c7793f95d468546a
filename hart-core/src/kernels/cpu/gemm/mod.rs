//! Matrix products of linear layers: `y[m][n] = x[m] . w[n] + b[n]`, with weights as a checkpoint has them, a row for each output.
//!
//! Two forms of f32 product, both with weights where the file is mapped: [`gemv`] rearranges nothing and serves few rows, [`blocked`]
//! rearranges a piece at a time. [`bf16`] and [`int8`] take weights that were rounded and rearranged before. A row comes out the same
//! whatever other rows there are, within each form.

mod amx;
#[cfg(target_arch = "aarch64")]
mod arm;
mod bf16;
mod blocked;
mod gemv;
mod int8;
mod isa;
mod microkernel;
#[cfg(any(test, feature = "train"))]
mod transposed;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use bf16::{Bf16Rows, Bf16Weights};
pub(crate) use int8::{Int8Rows, Int8Weights};
pub(crate) use microkernel::OUTPUTS;

use super::simd::SimdLevel;

/// Rows up to which the product that rearranges nothing is as fast or faster (docs/performance.md).
const FEW_ROWS: usize = 64;

/// Appends `x[m] . w[n] + b[n]` to y, rows of `width` numbers.
///
/// # Panics
///
/// If the lengths don't fit together.
pub(super) fn product(x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize, y: &mut Vec<f32>) {
    let (rows, _) = sizes(x, w, bias, width);
    let form = if rows <= FEW_ROWS { gemv::product } else { blocked::product };
    form(SimdLevel::best(), x, w, bias, width, y);
}

/// Whether the processor has instructions for bf16 that are faster than those for f32.
#[cfg(feature = "train")]
pub(super) fn bf16_is_fast() -> bool {
    SimdLevel::best().has_bf16()
}

/// Numbers of rows of x and of w.
///
/// # Panics
///
/// If the lengths don't fit together.
fn sizes(x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize) -> (usize, usize) {
    assert!(width > 0 && x.len().is_multiple_of(width) && w.len().is_multiple_of(width), "rows must be whole");
    let (rows, columns) = (x.len() / width, w.len() / width);
    assert!(bias.is_none_or(|b| b.len() == columns), "one bias a column");
    (rows, columns)
}

/// Returns the memory behind a vector's last element, where the caller has reserved room.
fn spare(y: &mut Vec<f32>) -> *mut f32 {
    y.spare_capacity_mut().as_mut_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Form = fn(SimdLevel, &[f32], &[f32], Option<&[f32]>, usize, &mut Vec<f32>);
    const FORMS: [Form; 2] = [gemv::product, blocked::product];

    fn product_by(form: Form, level: SimdLevel, x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
        let mut y = vec![];
        form(level, x, w, bias, width, &mut y);
        y
    }

    pub(super) fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
    }

    #[test]
    fn every_width_and_count_is_a_sum_of_products() {
        for (level, form) in SimdLevel::all().flat_map(|level| FORMS.map(|form| (level, form))) {
            for width in [1, 7, 16, 31, 64, 1000, 4101] {
                for (rows, columns) in [(1, 1), (2, 5), (3, 6), (4, 13), (9, 50), (13, 101), (1, 6), (0, 3), (3, 0)] {
                    let (x, w, bias) = (waves(rows * width, 0.7), waves(columns * width, 1.3), waves(columns, 0.4));
                    let got = product_by(form, level, &x, &w, Some(&bias), width);
                    assert_eq!(got.len(), rows * columns);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / columns, i % columns);
                        let products = (0..width).map(|k| f64::from(x[m * width + k]) * f64::from(w[n * width + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (width as f64).sqrt().max(4.0),
                            "{level:?} {rows} x {columns} x {width}: {got} and not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let width = 2348;
        let (x, w) = (waves(97 * width, 0.7), waves(61 * width, 1.3));
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        for form in FORMS {
            let all = product_by(form, SimdLevel::best(), &x, &w, None, width);
            for count in [1, 2, 3, 5, 64] {
                let some = product_by(form, SimdLevel::best(), &x[..count * width], &w, None, width);
                assert!(same(&some, &all), "{count} rows");
                let last = product_by(form, SimdLevel::best(), &x[(97 - count) * width..], &w, None, width);
                assert!(same(&last, &all[(97 - count) * 61..]), "last {count} rows");
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows must be whole")]
    fn rows_that_are_not_whole_are_refused() {
        product(&[0.0; 7], &[0.0; 6], None, 3, &mut vec![]);
    }
}
