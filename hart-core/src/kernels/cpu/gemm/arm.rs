//! Words of bytes by the instructions of 64-bit ARM. Untried: written where there was neither such a processor nor a compiler for it.

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8, vreinterpretq_s8_s32};
use std::arch::asm;

use super::microkernel::{Arithmetic, Finish, OUTPUTS, Part, multiply};

/// Bytes with a sign by 128 bits, four products and their sum at once.
pub(super) struct Dot;

// SAFETY of all functions: used in `dot` only, which is called where the processor has the instructions.
impl Arithmetic for Dot {
    const ROWS: usize = 6;
    const TILE_PANELS: usize = 1;
    type Number = i32;
    /// Of four outputs each.
    type Sums = [int32x4_t; 4];
    type Weights = [int8x16_t; 4];
    type Word = int8x16_t;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Weights {
        let from = from.cast::<i8>();
        // SAFETY: see above, and the caller's.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16)), vld1q_s8(from.add(32)), vld1q_s8(from.add(48))] }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> int8x16_t {
        // SAFETY: see above, and the caller's.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn add(mut sums: Self::Sums, word: int8x16_t, weights: Self::Weights) -> Self::Sums {
        for (sums, weights) in sums.iter_mut().zip(weights) {
            // SAFETY: see above. (The function for it is unstable.)
            unsafe {
                asm!(
                    "sdot {sums:v}.4s, {weights:v}.16b, {word:v}.16b",
                    sums = inout(vreg) *sums,
                    weights = in(vreg) weights,
                    word = in(vreg) word,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn numbers(sums: Self::Sums) -> [i32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        unsafe { std::mem::transmute(sums) }
    }
}

/// All tiles of a part.
///
/// # Safety
///
/// As [`multiply`], by the dot products of Armv8.2.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dot(part: &Part<'_, impl Finish<i32>>) {
    // SAFETY: the caller's.
    unsafe { multiply::<Dot, _>(part) }
}
