//! Vectors of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{Job, Lanes};

/// With or without the products of bf16.
#[derive(Clone, Copy)]
struct Avx512<const BF16: bool>(__m512);

// SAFETY of all functions: used in `avx512` only, which is called where the processor has AVX-512, and in `avx512_bf16`, where it
// has its products of bf16 too.
impl<const BF16: bool> Lanes for Avx512<BF16> {
    const COUNT: usize = 16;
    const MANY: bool = true;
    const PAIRS: bool = BF16;

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
        // SAFETY: see above, and the caller's.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: see above, and the caller's; what is masked is not read.
        Self(unsafe { _mm512_maskz_loadu_ps((1u16 << count) - 1, from) })
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: see above, and the caller's.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(upper))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above, and the caller's.
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
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
        assert!(BF16, "only where there are PAIRS");
        // SAFETY: see above; the types are both vectors of 512 bits.
        unsafe {
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a.0), std::mem::transmute::<__m512, __m512bh>(b.0));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn pair(low: Self, high: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            // Half of the last place that is left, and the half of a lane in which a bf16 is an f32.
            let (half, upper) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000u32 as i32));
            let low = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(low.0), half));
            let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
            let high = _mm512_and_si512(high, upper);
            Self(_mm512_castsi512_ps(_mm512_or_si512(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn halves(low: Self, high: Self) -> Self {
        assert!(BF16, "only where there are PAIRS");
        // SAFETY: see above; the types are both vectors of 512 bits.
        Self(unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high.0, low.0)) })
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn times_power(self, n: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[allow(clippy::needless_range_loop)] // Each round fills a column of the array.
    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above, and the caller's.
        unsafe {
            // Pairs of numbers, then fours, of four rows: a quarter of a vector holds those of one column. Without closures, in
            // which the compiler doesn't know of AVX-512.
            let mut fours = [[_mm512_setzero_ps(); 4]; 4];
            for i in 0..4 {
                let row = from.add(4 * i * stride);
                let (a, b) = (_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(stride)));
                let (c, d) = (_mm512_loadu_ps(row.add(2 * stride)), _mm512_loadu_ps(row.add(3 * stride)));
                let (ab, cd) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpacklo_ps(c, d)));
                fours[0][i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                fours[1][i] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                let (ab, cd) = (_mm512_castps_pd(_mm512_unpackhi_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
                fours[2][i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                fours[3][i] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            }
            for (j, [a, b, c, d]) in fours.into_iter().enumerate() {
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

#[derive(Clone, Copy)]
struct Avx2(__m256);

// SAFETY of all functions: used in `avx2` only, which is called where the processor has AVX2 and FMA.
impl Lanes for Avx2 {
    const COUNT: usize = 8;
    const MANY: bool = false;

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
        // SAFETY: see above, and the caller's.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: see above, and the caller's.
        unsafe {
            let values: [f32; 8] = std::array::from_fn(|i| if i < count { from.add(i).read() } else { 0.0 });
            Self(_mm256_loadu_ps(values.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: see above, and the caller's.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))), Self(_mm256_castsi256_ps(upper))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above, and the caller's.
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
    unsafe fn times_power(self, n: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), exponent)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above, and the caller's.
        unsafe {
            for half in 0..2 {
                // Four rows' numbers in the lower half of a vector, and those of the four rows behind in the upper half.
                let row = from.add(4 * half);
                let (a, b) = (two(row, row.add(4 * stride)), two(row.add(stride), row.add(5 * stride)));
                let (c, d) = (two(row.add(2 * stride), row.add(6 * stride)), two(row.add(3 * stride), row.add(7 * stride)));
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

/// Four numbers, and four more behind.
///
/// # Safety
///
/// The processor has AVX2, and the numbers are there.
#[inline(always)]
unsafe fn two(lower: *const f32, upper: *const f32) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(lower)), _mm_loadu_ps(upper)) }
}

/// # Safety
///
/// The processor has AVX-512.
// VL lets the sums of lanes use all 32 registers too, without which the compiler keeps to 16 throughout.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn avx512(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx512<false>>() }
}

/// # Safety
///
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
pub(super) unsafe fn avx512_bf16(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx512<true>>() }
}

/// # Safety
///
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx2>() }
}
