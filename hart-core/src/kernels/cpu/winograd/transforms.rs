//! The three transforms: patches of a map, kernels, and back to places of a map.
//!
//! A row of 6 numbers and a kernel of 3 are polynomials; their product's values at 6 points are products of their values, and 4 of its
//! coefficients are the convolution. The points are 0, ±√½, ±√2 and infinity, of which √½ √2 = 1: with them rounding to bfloat16 costs
//! a third of what it costs with the usual 0, ±1, ±2. In two dimensions it is done for the columns and then for the rows.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use super::super::simd::SimdF32;
use super::{PATCH, TILE};

/// `a + b`.
///
/// # Safety
///
/// The processor has the lanes; so for all functions here.
#[inline(always)]
unsafe fn add<S: SimdF32>(a: S, b: S) -> S {
    // SAFETY: the caller's.
    unsafe { a.add_product(b, S::splat(1.0)) }
}

#[inline(always)]
unsafe fn subtract<S: SimdF32>(a: S, b: S) -> S {
    // SAFETY: the caller's.
    unsafe { a.add_product(b, S::splat(-1.0)) }
}

/// `a factor`.
#[inline(always)]
unsafe fn times<S: SimdF32>(a: S, factor: f32) -> S {
    // SAFETY: the caller's.
    unsafe { S::zero().add_product(a, S::splat(factor)) }
}

/// `a + b factor`.
#[inline(always)]
unsafe fn plus<S: SimdF32>(a: S, b: S, factor: f32) -> S {
    // SAFETY: the caller's.
    unsafe { a.add_product(b, S::splat(factor)) }
}

/// A row of a patch at the points.
#[inline(always)]
unsafe fn patch_at_points<S: SimdF32>(d: [S; PATCH]) -> [S; PATCH] {
    // SAFETY: the caller's.
    unsafe {
        let (even_half, odd_half) = (plus(d[4], d[2], -2.0), plus(times(d[3], FRAC_1_SQRT_2), d[1], -SQRT_2));
        let (even_two, odd_two) = (plus(d[4], d[2], -0.5), plus(times(d[3], SQRT_2), d[1], -FRAC_1_SQRT_2));
        [
            add(plus(d[4], d[2], -2.5), d[0]),
            add(even_half, odd_half),
            subtract(even_half, odd_half),
            add(even_two, odd_two),
            subtract(even_two, odd_two),
            add(plus(d[5], d[3], -2.5), d[1]),
        ]
    }
}

/// A row of a kernel at the points.
#[inline(always)]
unsafe fn kernel_at_points<S: SimdF32>(g: [S; 3]) -> [S; PATCH] {
    // SAFETY: the caller's.
    unsafe {
        let (even_half, odd_half) = (times(plus(g[0], g[2], 0.5), -2.0 / 3.0), times(g[1], -2.0 / 3.0 * FRAC_1_SQRT_2));
        let (even_two, odd_two) = (times(plus(g[0], g[2], 2.0), 1.0 / 6.0), times(g[1], SQRT_2 / 6.0));
        [g[0], add(even_half, odd_half), subtract(even_half, odd_half), add(even_two, odd_two), subtract(even_two, odd_two), g[2]]
    }
}

/// A row of a tile from the products at the points.
#[inline(always)]
unsafe fn tile_from_points<S: SimdF32>(m: [S; PATCH]) -> [S; TILE] {
    const HALF_CUBED: f32 = 0.5 * FRAC_1_SQRT_2;
    const TWO_CUBED: f32 = 2.0 * SQRT_2;
    // SAFETY: the caller's.
    unsafe {
        let (even_half, odd_half) = (add(m[1], m[2]), subtract(m[1], m[2]));
        let (even_two, odd_two) = (add(m[3], m[4]), subtract(m[3], m[4]));
        [
            add(add(m[0], even_half), even_two),
            plus(times(odd_half, FRAC_1_SQRT_2), odd_two, SQRT_2),
            plus(times(even_half, 0.5), even_two, 2.0),
            plus(plus(m[5], odd_half, HALF_CUBED), odd_two, TWO_CUBED),
        ]
    }
}

/// A patch at all points, rows before columns.
#[allow(clippy::needless_range_loop)] // Rows and columns play the same part; closures wouldn't be compiled for the lanes.
#[inline(always)]
pub(super) unsafe fn patch<S: SimdF32>(d: [[S; PATCH]; PATCH]) -> [[S; PATCH]; PATCH] {
    // SAFETY: the caller's.
    unsafe {
        let mut points = d;
        for i in 0..PATCH {
            let column = patch_at_points([d[0][i], d[1][i], d[2][i], d[3][i], d[4][i], d[5][i]]);
            for j in 0..PATCH {
                points[j][i] = column[j];
            }
        }
        for i in 0..PATCH {
            points[i] = patch_at_points(points[i]);
        }
        points
    }
}

/// A 3x3 kernel at all points.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn kernel<S: SimdF32>(g: [[S; 3]; 3]) -> [[S; PATCH]; PATCH] {
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [[S::zero(); 3]; PATCH];
        for i in 0..3 {
            let column = kernel_at_points([g[0][i], g[1][i], g[2][i]]);
            for j in 0..PATCH {
                rows[j][i] = column[j];
            }
        }
        let mut points = [[S::zero(); PATCH]; PATCH];
        for i in 0..PATCH {
            points[i] = kernel_at_points(rows[i]);
        }
        points
    }
}

/// The products at all points to a tile.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn tile<S: SimdF32>(m: [[S; PATCH]; PATCH]) -> [[S; TILE]; TILE] {
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [[S::zero(); PATCH]; TILE];
        for i in 0..PATCH {
            let column = tile_from_points([m[0][i], m[1][i], m[2][i], m[3][i], m[4][i], m[5][i]]);
            for j in 0..TILE {
                rows[j][i] = column[j];
            }
        }
        let mut places = [[S::zero(); TILE]; TILE];
        for i in 0..TILE {
            places[i] = tile_from_points(rows[i]);
        }
        places
    }
}
