//! Micro-kernel operations for int8 in the dot products of 64-bit ARM (Armv8.2), and the widening of f16.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

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
    /// The bits of one dword, in the lowest lane of a vector register: the instruction broadcasts it.
    type XVector = f32;

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
    unsafe fn load_x(from: *const u32) -> f32 {
        // SAFETY: the caller guarantees one dword.
        unsafe { from.cast::<f32>().read() }
    }

    #[inline(always)]
    unsafe fn accumulate(mut accumulators: Self::AccVector, x: f32, w: Self::WVector) -> Self::AccVector {
        for (accumulators, w) in accumulators.iter_mut().zip(w) {
            // SAFETY: see above. Assembly, because the intrinsic is unstable.
            unsafe {
                asm!(
                    "sdot {accumulators:v}.4s, {w:v}.16b, {x:v}.4b[0]",
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

/// Widens f16 with `fcvtl`, which every 64-bit ARM processor has. The crate `half` uses it only where products of f16 exist too.
///
/// # Panics
///
/// If the lengths differ.
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "equal lengths");
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: NEON belongs to every aarch64 target of Rust, and both arrays have four values.
        unsafe { vst1q_f32(to.as_mut_ptr(), vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.as_ptr().cast())))) };
    }
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = from.to_f32());
}
