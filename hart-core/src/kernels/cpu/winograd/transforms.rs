//! The three transforms of Winograd's algorithm: input, filter and output.
//!
//! A row of 6 values and a filter of 3 are taken as polynomials, which are evaluated at 6 points. The products of their values at
//! these points are the values of the product polynomial, and 4 of its coefficients are the convolution. The points are 0, ±√½, ±√2
//! and infinity. Since √½ √2 = 1, rounding to bf16 costs a third of what it costs with the usual 0, ±1, ±2. In two dimensions the
//! columns are transformed first, then the rows.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use super::super::simd::SimdF32;
use super::{PATCH, TILE};

/// Returns `a + b`.
///
/// # Safety
///
/// The processor has the instructions of `S`; the same holds for every function of this file.
#[inline(always)]
unsafe fn add<S: SimdF32>(a: S, b: S) -> S {
    // SAFETY: the caller guarantees the instructions.
    unsafe { a.add_product(b, S::splat(1.0)) }
}

#[inline(always)]
unsafe fn subtract<S: SimdF32>(a: S, b: S) -> S {
    // SAFETY: the caller guarantees the instructions.
    unsafe { a.add_product(b, S::splat(-1.0)) }
}

/// Returns `a * factor`.
#[inline(always)]
unsafe fn scale<S: SimdF32>(a: S, factor: f32) -> S {
    // SAFETY: the caller guarantees the instructions.
    unsafe { S::zero().add_product(a, S::splat(factor)) }
}

/// Returns `a + b * factor`.
#[inline(always)]
unsafe fn add_scaled<S: SimdF32>(a: S, b: S, factor: f32) -> S {
    // SAFETY: the caller guarantees the instructions.
    unsafe { a.add_product(b, S::splat(factor)) }
}

/// Applies `B^T` to a row of an input tile.
#[inline(always)]
unsafe fn input_row<S: SimdF32>(d: [S; PATCH]) -> [S; PATCH] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let (even_root_half, odd_root_half) = (add_scaled(d[4], d[2], -2.0), add_scaled(scale(d[3], FRAC_1_SQRT_2), d[1], -SQRT_2));
        let (even_root_two, odd_root_two) = (add_scaled(d[4], d[2], -0.5), add_scaled(scale(d[3], SQRT_2), d[1], -FRAC_1_SQRT_2));
        [
            add(add_scaled(d[4], d[2], -2.5), d[0]),
            add(even_root_half, odd_root_half),
            subtract(even_root_half, odd_root_half),
            add(even_root_two, odd_root_two),
            subtract(even_root_two, odd_root_two),
            add(add_scaled(d[5], d[3], -2.5), d[1]),
        ]
    }
}

/// Applies `G` to a row of a filter.
#[inline(always)]
unsafe fn filter_row<S: SimdF32>(g: [S; 3]) -> [S; PATCH] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let (even_root_half, odd_root_half) =
            (scale(add_scaled(g[0], g[2], 0.5), -2.0 / 3.0), scale(g[1], -2.0 / 3.0 * FRAC_1_SQRT_2));
        let (even_root_two, odd_root_two) = (scale(add_scaled(g[0], g[2], 2.0), 1.0 / 6.0), scale(g[1], SQRT_2 / 6.0));
        [
            g[0],
            add(even_root_half, odd_root_half),
            subtract(even_root_half, odd_root_half),
            add(even_root_two, odd_root_two),
            subtract(even_root_two, odd_root_two),
            g[2],
        ]
    }
}

/// Applies `A^T` to a row of products.
#[inline(always)]
unsafe fn output_row<S: SimdF32>(m: [S; PATCH]) -> [S; TILE] {
    const HALF_CUBED: f32 = 0.5 * FRAC_1_SQRT_2;
    const TWO_CUBED: f32 = 2.0 * SQRT_2;
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let (even_root_half, odd_root_half) = (add(m[1], m[2]), subtract(m[1], m[2]));
        let (even_root_two, odd_root_two) = (add(m[3], m[4]), subtract(m[3], m[4]));
        [
            add(add(m[0], even_root_half), even_root_two),
            add_scaled(scale(odd_root_half, FRAC_1_SQRT_2), odd_root_two, SQRT_2),
            add_scaled(scale(even_root_half, 0.5), even_root_two, 2.0),
            add_scaled(add_scaled(m[5], odd_root_half, HALF_CUBED), odd_root_two, TWO_CUBED),
        ]
    }
}

/// Transforms an input tile: `B^T d B`.
#[allow(clippy::needless_range_loop)] // Rows and columns are indexed the same way; closures would not inherit the target features.
#[inline(always)]
pub(super) unsafe fn input<S: SimdF32>(d: [[S; PATCH]; PATCH]) -> [[S; PATCH]; PATCH] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let mut points = d;
        for i in 0..PATCH {
            let column = input_row([d[0][i], d[1][i], d[2][i], d[3][i], d[4][i], d[5][i]]);
            for j in 0..PATCH {
                points[j][i] = column[j];
            }
        }
        for i in 0..PATCH {
            points[i] = input_row(points[i]);
        }
        points
    }
}

/// Transforms a 3x3 filter: `G g G^T`.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn filter<S: SimdF32>(g: [[S; 3]; 3]) -> [[S; PATCH]; PATCH] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let mut rows = [[S::zero(); 3]; PATCH];
        for i in 0..3 {
            let column = filter_row([g[0][i], g[1][i], g[2][i]]);
            for j in 0..PATCH {
                rows[j][i] = column[j];
            }
        }
        let mut points = [[S::zero(); PATCH]; PATCH];
        for i in 0..PATCH {
            points[i] = filter_row(rows[i]);
        }
        points
    }
}

/// Transforms products to an output tile: `A^T m A`.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn output<S: SimdF32>(m: [[S; PATCH]; PATCH]) -> [[S; TILE]; TILE] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let mut rows = [[S::zero(); PATCH]; TILE];
        for i in 0..PATCH {
            let column = output_row([m[0][i], m[1][i], m[2][i], m[3][i], m[4][i], m[5][i]]);
            for j in 0..TILE {
                rows[j][i] = column[j];
            }
        }
        let mut pixels = [[S::zero(); TILE]; TILE];
        for i in 0..TILE {
            pixels[i] = output_row(rows[i]);
        }
        pixels
    }
}
