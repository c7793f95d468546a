//! Micro-kernel operations for int8 in the instruction sets of 64-bit ARM. Not yet compiled or tested.

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8, vreinterpretq_s8_s32};
use std::arch::asm;

use super::epilogue::Epilogue;
use super::microkernel::{MacroBlock, MicroKernelOps, macro_kernel};
use super::packing::NR;

/// `sdot` on 128 bits: signed int8 by signed int8.
pub(super) struct NeonDot;

// SAFETY of all functions: used only inside `neon_dot`, whose caller guarantees the processor's features.
impl MicroKernelOps for NeonDot {
    const MR: usize = 6;
    const PANELS: usize = 1;
    type Accumulator = i32;
    /// Four outputs in each vector.
    type AccVector = [int32x4_t; 4];
    type WVector = [int8x16_t; 4];
    type XVector = int8x16_t;

    #[inline(always)]
    unsafe fn zero() -> Self::AccVector {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> Self::WVector {
        let from = from.cast::<i8>();
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16)), vld1q_s8(from.add(32)), vld1q_s8(from.add(48))] }
    }

    #[inline(always)]
    unsafe fn broadcast_x(from: *const u32) -> int8x16_t {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn accumulate(mut accumulators: Self::AccVector, x: int8x16_t, w: Self::WVector) -> Self::AccVector {
        for (accumulators, w) in accumulators.iter_mut().zip(w) {
            // SAFETY: see above. Assembly, because the intrinsic is unstable.
            unsafe {
                asm!(
                    "sdot {accumulators:v}.4s, {w:v}.16b, {x:v}.16b",
                    accumulators = inout(vreg) *accumulators,
                    w = in(vreg) w,
                    x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
        accumulators
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: Self::AccVector) -> [i32; NR] {
        // SAFETY: both types have the same size, and any bits are valid.
        unsafe { std::mem::transmute(accumulators) }
    }
}

/// Multiplies a block.
///
/// # Safety
///
/// The processor has the dot products of Armv8.2. Otherwise the same as [`macro_kernel`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn neon_dot(block: &MacroBlock<'_, impl Epilogue<i32>>) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { macro_kernel::<NeonDot, _>(block) }
}
