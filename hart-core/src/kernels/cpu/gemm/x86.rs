//! Words of bytes and of bf16 by the instructions of x86-64.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::microkernel::{Arithmetic, Finish, Line, OUTPUTS, Part, multiply};

/// Bytes by 512 bits, four products and their sum at once.
pub(super) struct Vnni512;

// SAFETY of all functions: used in `vnni512` only, which is called where the processor has the instructions.
impl Arithmetic for Vnni512 {
    const ROWS: usize = 8;
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

/// Rows of a block of x for vectors of 256 bits.
pub(super) const BY_256_ROWS: usize = 6;

/// Instructions that multiply a word of each of eight outputs.
trait Multiply256 {
    /// `sums + word weights`.
    ///
    /// # Safety
    ///
    /// The processor has the instructions.
    unsafe fn add(sums: __m256i, word: __m256i, weights: __m256i) -> __m256i;
}

/// Four bytes each, in the encoding of AVX or of AVX-512.
struct Vnni<const AVX: bool>;

impl<const AVX: bool> Multiply256 for Vnni<AVX> {
    #[inline(always)]
    unsafe fn add(sums: __m256i, word: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { if AVX { _mm256_dpbusd_avx_epi32(sums, word, weights) } else { _mm256_dpbusd_epi32(sums, word, weights) } }
    }
}

/// Two 16-bit integers each, for bytes that were widened. The instruction that multiplies bytes saturates and would not be exact.
struct Avx2;

impl Multiply256 for Avx2 {
    #[inline(always)]
    unsafe fn add(sums: __m256i, word: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(word, weights)) }
    }
}

/// Two vectors of 256 bits for 16 outputs.
struct By256<M>(PhantomData<M>);

// SAFETY of all functions: used in `avx2`, `avx_vnni` and `vnni256` only, which are called where the processor has the instructions.
impl<M: Multiply256> Arithmetic for By256<M> {
    const ROWS: usize = BY_256_ROWS;
    const TILE_PANELS: usize = 1;
    type Number = i32;
    type Sums = [__m256i; 2];
    type Weights = [__m256i; 2];
    type Word = __m256i;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_si256(); 2] }
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
        unsafe { [M::add(sums[0], word, weights[0]), M::add(sums[1], word, weights[1])] }
    }

    #[inline(always)]
    unsafe fn numbers(sums: [__m256i; 2]) -> [i32; OUTPUTS] {
        // SAFETY: as many bits of the same kind.
        unsafe { std::mem::transmute(sums) }
    }
}

/// Weights of bytes as 16-bit integers: of each line the even inputs, then the odd ones.
///
/// # Safety
///
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen_bytes(weights: &[u8], wide: &mut [Line]) {
    assert!(weights.len() >= wide.len() / 2 * size_of::<Line>(), "a line for two");
    for line in 0..wide.len() / 2 {
        for half in 0..2 {
            // SAFETY: so many lines of two halves are there, as seen above, and twice as many places.
            unsafe {
                let bytes = _mm256_loadu_si256(weights.as_ptr().cast::<__m256i>().add(2 * line + half));
                let to = wide.as_mut_ptr().cast::<__m256i>().add(4 * line + half);
                _mm256_store_si256(to, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)));
                _mm256_store_si256(to.add(2), _mm256_srai_epi16::<8>(bytes));
            }
        }
    }
}

/// bf16 by 512 bits, two products and their sum at once.
pub(super) struct Avx512Bf16;

// SAFETY of all functions: used in `avx512_bf16` only, which is called where the processor has the instructions.
impl Arithmetic for Avx512Bf16 {
    const ROWS: usize = 8;
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

by!(avx2, By256<Avx2>, i32, "avx2");
by!(avx_vnni, By256<Vnni<true>>, i32, "avx2,avxvnni");
// VL lets the compiler use all 32 registers.
by!(vnni256, By256<Vnni<false>>, i32, "avx2,avx512f,avx512vl,avx512vnni");
by!(vnni512, Vnni512, i32, "avx512f,avx512vl,avx512vnni");
by!(avx512_bf16, Avx512Bf16, f32, "avx512f,avx512vl,avx512bf16");
