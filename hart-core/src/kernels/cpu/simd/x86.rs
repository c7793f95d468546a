//! Vectors of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{SimdF32, SimdKernel};

/// 16 lanes of AVX-512, with AVX512_BF16 if `BF16`.
#[derive(Clone, Copy)]
struct Avx512<const BF16: bool>(__m512);

// SAFETY of all functions: used only inside `avx512` and `avx512_bf16`, whose callers guarantee the processor's features.
impl<const BF16: bool> SimdF32 for Avx512<BF16> {
    const LANES: usize = 16;
    const HAS_32_REGISTERS: bool = true;
    const HAS_BF16: bool = BF16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer; masked lanes are not read.
        Self(unsafe { _mm512_maskz_loadu_ps((1u16 << count) - 1, from) })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(upper))]
        }
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn add_bf16_dot(self, a: f32, b: Self) -> Self {
        assert!(BF16, "only with HAS_BF16");
        // SAFETY: see above; both types are 512 bits wide.
        unsafe {
            let a = _mm512_set1_ps(a);
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b.0));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn interleave_bf16(low: Self, high: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            // Round to nearest, ties away from zero: add half a unit in the last place of bf16, then truncate.
            let (half, upper) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000u32 as i32));
            let low = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(low.0), half));
            let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
            let high = _mm512_and_si512(high, upper);
            Self(_mm512_castsi512_ps(_mm512_or_si512(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn concat_bf16(low: Self, high: Self) -> Self {
        assert!(BF16, "only with HAS_BF16");
        // SAFETY: see above; both types are 512 bits wide.
        Self(unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high.0, low.0)) })
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn ldexp(self, n: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent)))
        }
    }

    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[allow(clippy::needless_range_loop)] // Each iteration fills a column of the array.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            // Transpose 4x4 matrices within the 128-bit lanes, then exchange the lanes. Without closures: they do not inherit the
            // function's target features.
            let mut quads = [[_mm512_setzero_ps(); 4]; 4];
            for i in 0..4 {
                let row = from.add(4 * i * stride);
                let (a, b) = (_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(stride)));
                let (c, d) = (_mm512_loadu_ps(row.add(2 * stride)), _mm512_loadu_ps(row.add(3 * stride)));
                let (ab, cd) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpacklo_ps(c, d)));
                quads[0][i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                quads[1][i] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                let (ab, cd) = (_mm512_castps_pd(_mm512_unpackhi_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
                quads[2][i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                quads[3][i] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            }
            for (j, [a, b, c, d]) in quads.into_iter().enumerate() {
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even_below, odd_below) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                _mm512_storeu_ps(to.add(j * to_stride), _mm512_shuffle_f32x4::<0x88>(even, even_below));
                _mm512_storeu_ps(to.add((j + 4) * to_stride), _mm512_shuffle_f32x4::<0x88>(odd, odd_below));
                _mm512_storeu_ps(to.add((j + 8) * to_stride), _mm512_shuffle_f32x4::<0xdd>(even, even_below));
                _mm512_storeu_ps(to.add((j + 12) * to_stride), _mm512_shuffle_f32x4::<0xdd>(odd, odd_below));
            }
        }
    }
}

/// Eight lanes of AVX2 with FMA.
#[derive(Clone, Copy)]
struct Avx2(__m256);

// SAFETY of all functions: used only inside `avx2`, whose caller guarantees AVX2 and FMA.
impl SimdF32 for Avx2 {
    const LANES: usize = 8;
    const HAS_32_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let values: [f32; 8] = std::array::from_fn(|i| if i < count { from.add(i).read() } else { 0.0 });
            Self(_mm256_loadu_ps(values.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))), Self(_mm256_castsi256_ps(upper))]
        }
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn ldexp(self, n: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), exponent)))
        }
    }

    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above, and the caller guarantees the values behind the pointer.
        unsafe {
            for half in 0..2 {
                // Rows i in the lower halves of the vectors and rows i + 4 in the upper halves; then a 4x4 transpose in each half.
                let row = from.add(4 * half);
                let (a, b) = (load_halves(row, row.add(4 * stride)), load_halves(row.add(stride), row.add(5 * stride)));
                let (c, d) =
                    (load_halves(row.add(2 * stride), row.add(6 * stride)), load_halves(row.add(3 * stride), row.add(7 * stride)));
                let to = to.add(4 * half * to_stride);
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(ab, cd));
                _mm256_storeu_ps(to.add(to_stride), _mm256_shuffle_ps::<0xee>(ab, cd));
                let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                _mm256_storeu_ps(to.add(2 * to_stride), _mm256_shuffle_ps::<0x44>(ab, cd));
                _mm256_storeu_ps(to.add(3 * to_stride), _mm256_shuffle_ps::<0xee>(ab, cd));
            }
        }
    }
}

/// Loads four values into each half of a vector.
///
/// # Safety
///
/// The processor has AVX2, and there are four values behind each pointer.
#[inline(always)]
unsafe fn load_halves(lower: *const f32, upper: *const f32) -> __m256 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(lower)), _mm_loadu_ps(upper)) }
}

/// Runs a kernel with AVX-512.
///
/// # Safety
///
/// The processor has AVX-512 F and VL.
// With VL, the narrower vectors of `reduce_sum` can use all 32 registers; without it, the compiler uses 16 in the whole kernel.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn avx512(kernel: impl SimdKernel) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// Runs a kernel with AVX-512 and AVX512_BF16.
///
/// # Safety
///
/// The processor has AVX-512 F, VL and BF16.
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
pub(super) unsafe fn avx512_bf16(kernel: impl SimdKernel) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { kernel.run::<Avx512<true>>() }
}

/// Runs a kernel with AVX2 and FMA.
///
/// # Safety
///
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(kernel: impl SimdKernel) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { kernel.run::<Avx2>() }
}
