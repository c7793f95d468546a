//! Micro-kernel operations for int8 in wasm's simd128.

use std::arch::wasm32::*;

use half::f16;

use super::f16::{BIAS, INFINITE, NORMAL, to_f32};
use super::microkernel::{CacheLine, MicroKernelOps};
use super::packing::NR;

/// `i32x4.dot_i16x8_s` on int8 that were widened to 16 bits: four vectors for the 16 outputs of a panel.
pub(super) struct Dot16;

// SAFETY of all functions: the module is compiled with simd128, and the host accepts it only with these instructions.
impl MicroKernelOps for Dot16 {
    const MR: usize = 2;
    const PANELS: usize = 1;
    type Accumulator = i32;
    type AccVector = [v128; 4];
    type WVector = [v128; 4];
    type XVector = v128;

    #[inline(always)]
    unsafe fn zero() -> [v128; 4] {
        [i32x4_splat(0); 4]
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> [v128; 4] {
        // SAFETY: the caller guarantees the data behind the pointer.
        [0, 16, 32, 48].map(|at| unsafe { v128_load(from.add(at).cast()) })
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> v128 {
        // SAFETY: the caller guarantees the data behind the pointer.
        unsafe { v128_load32_splat(from) }
    }

    #[inline(always)]
    unsafe fn accumulate(accumulators: [v128; 4], x: v128, w: [v128; 4]) -> [v128; 4] {
        std::array::from_fn(|i| i32x4_add(accumulators[i], i32x4_dot_i16x8(x, w[i])))
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: [v128; 4]) -> [i32; NR] {
        // SAFETY: both types have the same size, and any bits are valid.
        unsafe { std::mem::transmute(accumulators) }
    }
}

/// Widens panels of w from int8 to int16: each cache line becomes one of its even inputs and one of its odd inputs.
pub(super) fn widen_int8(w: &[u8], widened: &mut [CacheLine]) {
    assert!(w.len() >= widened.len() / 2 * size_of::<CacheLine>(), "two widened lines for each line");
    for line in 0..widened.len() / 2 {
        for quarter in 0..4 {
            // SAFETY: w has this many lines of four quarters, as checked above, and `widened` twice as many lines.
            unsafe {
                let bytes = v128_load(w.as_ptr().cast::<v128>().add(4 * line + quarter));
                let to = widened.as_mut_ptr().cast::<v128>().add(8 * line + quarter);
                v128_store(to, i16x8_shr(i16x8_shl(bytes, 8), 8));
                v128_store(to.add(4), i16x8_shr(bytes, 8));
            }
        }
    }
}

/// Widens values from f16 like [`to_f32`], four at a time.
///
/// # Panics
///
/// If the lengths differ.
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "equal lengths");
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both arrays have four values.
        unsafe {
            let bits = u32x4_load_extend_u16x4(from.as_ptr().cast());
            let sign = u32x4_shl(v128_and(bits, u32x4_splat(0x8000)), 16);
            let shifted = u32x4_shl(v128_and(bits, u32x4_splat(0x7fff)), 13);
            let exponent = v128_and(shifted, u32x4_splat(INFINITE));
            let subnormal = f32x4_sub(u32x4_add(shifted, u32x4_splat(NORMAL)), u32x4_splat(NORMAL));
            let infinite = v128_and(u32x4_eq(exponent, u32x4_splat(INFINITE)), u32x4_splat(BIAS));
            let normal = u32x4_add(u32x4_add(shifted, u32x4_splat(BIAS)), infinite);
            let value = v128_bitselect(subnormal, normal, u32x4_eq(exponent, u32x4_splat(0)));
            v128_store(to.as_mut_ptr().cast(), v128_or(sign, value));
        }
    }
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = to_f32(*from));
}
