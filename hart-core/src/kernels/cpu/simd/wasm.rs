//! Vectors of wasm's simd128.

use std::arch::wasm32::*;

use super::SimdF32;

/// Four lanes of simd128, without the relaxed instructions, whose results depend on the host's processor.
#[derive(Clone, Copy)]
pub(super) struct Simd128(v128);

// SAFETY of all functions: the module is compiled with simd128, and the host accepts it only with these instructions.
impl SimdF32 for Simd128 {
    const LANES: usize = 4;
    // Hosts compile the module for the registers of SSE or NEON.
    const HAS_32_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(f32x4_splat(0.0))
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(f32x4_splat(value))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        Self(unsafe { v128_load(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        let value = |i: usize| if i < count { unsafe { from.add(i).read() } } else { 0.0 };
        Self(f32x4(value(0), value(1), value(2), value(3)))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller guarantees the values behind the pointer.
        let pairs = unsafe { v128_load(from.cast()) };
        // A bf16 is the upper half of the f32 of the same value.
        [Self(u32x4_shl(pairs, 16)), Self(v128_and(pairs, u32x4_splat(0xffff_0000)))]
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        let bytes = unsafe { v128_load32_zero(from.cast()) };
        Self(f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes))))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees the values behind the pointer.
        unsafe { v128_store(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(f32x4_add(self.0, other.0))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // `pmax(a, b)` is `if a < b { b } else { a }`.
        Self(f32x4_pmax(other.0, self.0))
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(f32x4_add(self.0, f32x4_mul(a.0, b.0)))
    }

    #[inline(always)]
    unsafe fn ldexp(self, n: Self) -> Self {
        Self(i32x4_add(self.0, i32x4_shl(n.0, 23)))
    }

    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        let two = f32x4_add(self.0, i32x4_shuffle::<2, 3, 2, 3>(self.0, self.0));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller guarantees the values behind the pointers.
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| v128_load(from.add(row * stride).cast()));
            let (ab, cd) = (i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<0, 4, 1, 5>(c, d));
            v128_store(to.cast(), i64x2_shuffle::<0, 2>(ab, cd));
            v128_store(to.add(to_stride).cast(), i64x2_shuffle::<1, 3>(ab, cd));
            let (ab, cd) = (i32x4_shuffle::<2, 6, 3, 7>(a, b), i32x4_shuffle::<2, 6, 3, 7>(c, d));
            v128_store(to.add(2 * to_stride).cast(), i64x2_shuffle::<0, 2>(ab, cd));
            v128_store(to.add(3 * to_stride).cast(), i64x2_shuffle::<1, 3>(ab, cd));
        }
    }
}
