//! Words of bytes and of bf16 by the instructions of x86-64.

use std::arch::x86_64::*;

use super::tile::{Arithmetic, Finish, OUTPUTS, Part, multiply};

/// Bytes by 512 bits, four products and their sum at once.
struct Vnni512;

// SAFETY of all functions: used in `vnni512` only, which is called where the processor has the instructions.
impl Arithmetic for Vnni512 {
    const TILE_ROWS: usize = 8;
    const TILE_PANELS: usize = 3;
    type Number = i32;
    type Sums = __m512i;
    type Weights = __m512i;
    type Word = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m512i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m512i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm512_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512i, word: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sums, word, weights) }
    }

    #[inline(always)]
    unsafe fn numbers(sums: __m512i) -> [i32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        unsafe { std::mem::transmute(sums) }
    }
}

/// The same by 256 bits, in the encoding of AVX or of AVX-512.
struct Vnni256<const AVX: bool>;

// SAFETY of all functions: used in `avx_vnni` and `vnni256` only, which are called where the processor has the instructions.
impl<const AVX: bool> Arithmetic for Vnni256<AVX> {
    const TILE_ROWS: usize = 4;
    const TILE_PANELS: usize = 1;
    type Number = i32;
    type Sums = [__m256i; 2];
    type Weights = [__m256i; 2];
    type Word = __m256i;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_si256(), _mm256_setzero_si256()] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> [__m256i; 2] {
        // SAFETY: see above, and the caller's.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m256i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm256_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m256i; 2], word: __m256i, weights: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            if AVX {
                [_mm256_dpbusd_avx_epi32(sums[0], word, weights[0]), _mm256_dpbusd_avx_epi32(sums[1], word, weights[1])]
            } else {
                [_mm256_dpbusd_epi32(sums[0], word, weights[0]), _mm256_dpbusd_epi32(sums[1], word, weights[1])]
            }
        }
    }

    #[inline(always)]
    unsafe fn numbers(sums: [__m256i; 2]) -> [i32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        unsafe { std::mem::transmute(sums) }
    }
}

/// Bytes made 16-bit integers, whose products are added in pairs; sums of the even pairs and of the odd ones, side by side.
/// The instruction that multiplies bytes saturates and would not be exact.
struct Avx2;

// SAFETY of all functions: used in `avx2` only, which is called where the processor has AVX2.
impl Arithmetic for Avx2 {
    const TILE_ROWS: usize = 2;
    const TILE_PANELS: usize = 1;
    type Number = i32;
    type Sums = [__m256i; 4];
    type Weights = [__m256i; 4];
    type Word = __m256i;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 4] {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_si256(); 4] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> [__m256i; 4] {
        // SAFETY: see above, and the caller's.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16).cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(32).cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(48).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m256i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm256_cvtepu8_epi16(_mm_set1_epi32(from.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m256i; 4], word: __m256i, weights: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(word, weights[0])),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(word, weights[1])),
                _mm256_add_epi32(sums[2], _mm256_madd_epi16(word, weights[2])),
                _mm256_add_epi32(sums[3], _mm256_madd_epi16(word, weights[3])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn numbers(sums: [__m256i; 4]) -> [i32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        let pairs: [[i32; 2]; OUTPUTS] = unsafe { std::mem::transmute(sums) };
        pairs.map(|[even, odd]| even + odd)
    }
}

/// bf16 by 512 bits, two products and their sum at once.
struct Avx512Bf16;

// SAFETY of all functions: used in `avx512_bf16` only, which is called where the processor has the instructions.
impl Arithmetic for Avx512Bf16 {
    const TILE_ROWS: usize = 8;
    const TILE_PANELS: usize = 3;
    type Number = f32;
    type Sums = __m512;
    type Weights = __m512i;
    type Word = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m512i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m512i {
        // SAFETY: see above, and the caller's.
        unsafe { _mm512_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512, word: __m512i, weights: __m512i) -> __m512 {
        // SAFETY: see above; vectors of 32 bf16 are as many bits.
        unsafe {
            _mm512_dpbf16_ps(
                sums,
                std::mem::transmute::<__m512i, __m512bh>(word),
                std::mem::transmute::<__m512i, __m512bh>(weights),
            )
        }
    }

    #[inline(always)]
    unsafe fn numbers(sums: __m512) -> [f32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        unsafe { std::mem::transmute(sums) }
    }
}

/// A function of [`multiply`] by some instructions.
macro_rules! by {
    ($name:ident, $arithmetic:ty, $number:ty, $features:literal) => {
        /// # Safety
        ///
        /// The processor has the features, and as [`multiply`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(part: &Part<'_, impl Finish<$number>>) {
            // SAFETY: the caller's.
            unsafe { multiply::<$arithmetic, _>(part) }
        }
    };
}

by!(avx2, Avx2, i32, "avx2");
by!(avx_vnni, Vnni256<true>, i32, "avx2,avxvnni");
// VL lets the compiler use all 32 registers.
by!(vnni256, Vnni256<false>, i32, "avx2,avx512f,avx512vl,avx512vnni");
by!(vnni512, Vnni512, i32, "avx512f,avx512vl,avx512vnni");
by!(avx512_bf16, Avx512Bf16, f32, "avx512f,avx512vl,avx512bf16");
