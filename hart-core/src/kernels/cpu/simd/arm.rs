//! Vectors of NEON, which every 64-bit ARM processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{SimdF32, SimdKernel};

/// Eight lanes in two 128-bit vectors, with FEAT_BF16 if `BF16`. In pairs, the 32 registers hold 16 vectors, as many as AVX2 has; sums
/// have the same order as with AVX2.
#[derive(Clone, Copy)]
struct Neon<const BF16: bool>([float32x4_t; 2]);

// SAFETY of all functions: NEON belongs to every aarch64 target of Rust. `Neon<true>` is used only inside `neon_bf16`, whose caller
// guarantees FEAT_BF16.
impl<const BF16: bool> SimdF32 for Neon<BF16> {
    const LANES: usize = 8;
    const HAS_32_REGISTERS: bool = false;
    const HAS_BF16: bool = BF16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        unsafe { Self::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { [vdupq_n_f32(value); 2] })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        Self(unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let values: [f32; 8] = std::array::from_fn(|i| if i < count { from.add(i).read() } else { 0.0 });
            Self::load(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let (first, second, upper) = (vld1q_u32(from), vld1q_u32(from.add(4)), vdupq_n_u32(0xffff_0000));
            let lows = [vshlq_n_u32::<16>(first), vshlq_n_u32::<16>(second)];
            let highs = [vandq_u32(first, upper), vandq_u32(second, upper)];
            [
                Self([vreinterpretq_f32_u32(lows[0]), vreinterpretq_f32_u32(lows[1])]),
                Self([vreinterpretq_f32_u32(highs[0]), vreinterpretq_f32_u32(highs[1])]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let wide = vmovl_s8(vld1_s8(from));
            let halves = [vmovl_s16(vget_low_s16(wide)), vmovl_s16(vget_high_s16(wide))];
            Self([vcvtq_f32_s32(halves[0]), vcvtq_f32_s32(halves[1])])
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            vst1q_f32(to, self.0[0]);
            vst1q_f32(to.add(4), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [vaddq_f32(self.0[0], other.0[0]), vaddq_f32(self.0[1], other.0[1])] })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [vmaxq_f32(self.0[0], other.0[0]), vmaxq_f32(self.0[1], other.0[1])] })
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [vfmaq_f32(self.0[0], a.0[0], b.0[0]), vfmaq_f32(self.0[1], a.0[1], b.0[1])] })
    }

    #[inline(always)]
    unsafe fn add_scaled(self, a: f32, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [fmla_by_lane(self.0[0], b.0[0], a), fmla_by_lane(self.0[1], b.0[1], a)] })
    }

    #[inline(always)]
    unsafe fn add_bf16_dot(self, a: f32, b: Self) -> Self {
        assert!(BF16, "only with HAS_BF16");
        // SAFETY: see above.
        Self(unsafe { [bfdot_by_lane(self.0[0], b.0[0], a), bfdot_by_lane(self.0[1], b.0[1], a)] })
    }

    #[inline(always)]
    unsafe fn interleave_bf16(low: Self, high: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [interleave_bf16(low.0[0], high.0[0]), interleave_bf16(low.0[1], high.0[1])] })
    }

    #[inline(always)]
    unsafe fn ldexp(self, n: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [ldexp(self.0[0], n.0[0]), ldexp(self.0[1], n.0[1])] })
    }

    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(self.0[0], self.0[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            for row in [0, 4] {
                for column in [0, 4] {
                    transpose_4x4(from.add(row * stride + column), stride, to.add(column * to_stride + row), to_stride);
                }
            }
        }
    }
}

/// Defines an instruction that multiplies all lanes of a vector by one lane of another.
macro_rules! by_lane {
    ($(#[$doc:meta])* $name:ident, $template:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The processor has the instruction.
        #[inline(always)]
        unsafe fn $name(mut sums: float32x4_t, b: float32x4_t, a: f32) -> float32x4_t {
            // SAFETY: the caller guarantees the instruction.
            unsafe {
                asm!(
                    $template,
                    sums = inout(vreg) sums,
                    b = in(vreg) b,
                    a = in(vreg) a,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
    };
}

by_lane!(
    /// Returns `sums + a * b`. Assembly, because the compiler would load a into all lanes, which takes an arithmetic unit too.
    fmla_by_lane,
    "fmla {sums:v}.4s, {b:v}.4s, {a:v}.s[0]"
);
by_lane!(
    /// Returns `sums` plus the dot product of the two bf16 in each lane of `b` by those in `a`. Assembly, because there is no intrinsic.
    bfdot_by_lane,
    "bfdot {sums:v}.4s, {b:v}.8h, {a:v}.2h[0]"
);

/// Rounds two vectors to bf16 and interleaves them. Ties round away from zero.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn interleave_bf16(low: float32x4_t, high: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        // Add half a unit in the last place of bf16, then truncate.
        let half = vdupq_n_u32(0x8000);
        let low = vaddq_u32(vreinterpretq_u32_f32(low), half);
        let high = vaddq_u32(vreinterpretq_u32_f32(high), half);
        vreinterpretq_f32_u32(vsriq_n_u32::<16>(high, low))
    }
}

/// Returns `x * 2^n`, where n is the integer in the lowest 9 bits of each lane of `n`.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn ldexp(x: float32x4_t, n: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(n));
        vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x), exponent))
    }
}

/// Transposes a matrix of 4 by 4 values.
///
/// # Safety
///
/// The processor has NEON, and the rows exist.
#[inline(always)]
unsafe fn transpose_4x4(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller guarantees the instructions and the rows.
    unsafe {
        let (a, b) = (vld1q_f32(from), vld1q_f32(from.add(stride)));
        let (c, d) = (vld1q_f32(from.add(2 * stride)), vld1q_f32(from.add(3 * stride)));
        // Pairs of values of two rows.
        let [ab, ab_odd] = [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|pairs| vreinterpretq_f64_f32(pairs));
        let [cd, cd_odd] = [vtrn1q_f32(c, d), vtrn2q_f32(c, d)].map(|pairs| vreinterpretq_f64_f32(pairs));
        vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(ab, cd)));
        vst1q_f32(to.add(to_stride), vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)));
        vst1q_f32(to.add(2 * to_stride), vreinterpretq_f32_f64(vtrn2q_f64(ab, cd)));
        vst1q_f32(to.add(3 * to_stride), vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)));
    }
}

/// Runs a kernel with NEON.
///
/// # Safety
///
/// The processor has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn neon(kernel: impl SimdKernel) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { kernel.run::<Neon<false>>() }
}

/// Runs a kernel with NEON and FEAT_BF16.
///
/// # Safety
///
/// The processor has NEON and FEAT_BF16.
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn neon_bf16(kernel: impl SimdKernel) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { kernel.run::<Neon<true>>() }
}
