//! Micro-kernel operations for int8 in wasm's simd128.

use std::arch::wasm32::*;

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
