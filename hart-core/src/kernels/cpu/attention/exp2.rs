//! Powers of two in two accuracies.
//!
//! Both split x into an integer and a remainder of at most 1/2, evaluate a polynomial of the remainder and add the integer to the
//! exponent. x is clamped to at least -126, the least exponent of a normal f32. NaN stays NaN.

use crate::kernels::cpu::simd::{MAGIC_BIAS, SimdF32};

/// Least exponent of a normal f32.
const MIN_EXPONENT: f32 = -126.0;

/// Returns `2^x` within 2 ulp, for x of at most 0. The polynomial is that of Cephes' `exp2f`.
///
/// # Safety
///
/// The processor has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn exp2<S: SimdF32>(x: S) -> S {
    const POLYNOMIAL: [f32; 6] = [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
    // SAFETY: the caller guarantees that the processor has the instructions.
    unsafe {
        let x = S::splat(MIN_EXPONENT).max(x);
        let integer = x.add(S::splat(MAGIC_BIAS));
        let remainder = x.add_product(S::splat(-1.0), integer.add(S::splat(-MAGIC_BIAS)));
        let mut power = S::splat(1.535_336_2e-4);
        for coefficient in POLYNOMIAL {
            power = S::splat(coefficient).add_product(power, remainder);
        }
        power.ldexp(integer)
    }
}

/// Returns `2^x` within a relative error of 8e-5, a twentieth of the rounding error of bf16, for x below 127.
///
/// The polynomial is the one of degree 3 with the least relative error.
///
/// # Safety
///
/// The processor has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn exp2_for_bf16<S: SimdF32>(x: S) -> S {
    // SAFETY: the caller guarantees that the processor has the instructions.
    unsafe {
        let x = S::splat(MIN_EXPONENT).max(x);
        let integer = x.add(S::splat(MAGIC_BIAS));
        let remainder = x.add_product(S::splat(-1.0), integer.add(S::splat(-MAGIC_BIAS)));
        let mut power = S::splat(0.055_171_67);
        for coefficient in [0.242_611_12, 0.693_261, 0.999_928_1] {
            power = S::splat(coefficient).add_product(power, remainder);
        }
        power.ldexp(integer)
    }
}
