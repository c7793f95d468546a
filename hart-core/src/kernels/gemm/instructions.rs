//! Instructions that multiply words of bytes or of bf16, and the choice of the best that the processor has.

use super::super::lanes::{self, Lanes};
use super::tile::{Arithmetic, Finish, OUTPUTS, Part, multiply};

/// Instructions for bytes: no value names what the processor lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8(Int8Kind);

#[derive(Clone, Copy, Debug)]
enum Int8Kind {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// As [`Self::AvxVnni`] in the encoding of AVX-512; here so that one of the two can be tested on either processor.
    #[cfg(target_arch = "x86_64")]
    Vnni256,
    #[cfg(target_arch = "x86_64")]
    Vnni512,
}

impl Int8 {
    /// All that the processor has, the best last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        let mut all = [Some(Self(Int8Kind::Plain)), None, None, None, None];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            all[1] = avx2.then_some(Self(Int8Kind::Avx2));
            all[2] = (avx512 && avx2).then_some(Self(Int8Kind::Vnni256));
            all[3] = (avx2 && is_x86_feature_detected!("avxvnni")).then_some(Self(Int8Kind::AvxVnni));
            all[4] = avx512.then_some(Self(Int8Kind::Vnni512));
        }
        all.into_iter().flatten()
    }

    /// The best that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Int8Kind::Plain))
    }

    /// Multiplies a part that nobody else multiplies at the same time.
    pub(super) fn multiply(self, part: &Part<'_, impl Finish<i32>>) {
        // SAFETY: a value is made in `all` only, after asking the processor; and the caller's.
        unsafe {
            match self.0 {
                Int8Kind::Plain => multiply::<Bytes, _>(part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Avx2 => x86::avx2(part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::AvxVnni => x86::avx_vnni(part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Vnni256 => x86::vnni256(part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Vnni512 => x86::vnni512(part),
            }
        }
    }
}

/// Instructions for bf16: no value names what the processor lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16(Bf16Kind);

#[derive(Clone, Copy, Debug)]
enum Bf16Kind {
    /// As f32.
    Widened(lanes::Level),
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Bf16 {
    /// All that the processor has, the best last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let native = (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16"))
        .then_some(Self(Bf16Kind::Avx512));
        #[cfg(not(target_arch = "x86_64"))]
        let native = None;
        let widened: Vec<_> = lanes::Level::all().map(|level| Self(Bf16Kind::Widened(level))).collect();
        widened.into_iter().chain(native)
    }

    /// The best that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Bf16Kind::Widened(lanes::Level::best())))
    }

    /// Multiplies a part that nobody else multiplies at the same time.
    pub(super) fn multiply(self, part: &Part<'_, impl Finish<f32>>) {
        struct Widened<'a, F>(&'a Part<'a, F>);
        impl<F: Finish<f32>> lanes::Job for Widened<'_, F> {
            #[inline(always)]
            unsafe fn run<L: Lanes>(self) {
                // SAFETY: the level has the lanes, and the caller's.
                unsafe { multiply::<Halves<L>, F>(self.0) }
            }
        }
        match self.0 {
            Bf16Kind::Widened(level) => level.run(Widened(part)),
            // SAFETY: a value is made in `all` only, after asking the processor; and the caller's.
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => unsafe { x86::avx512_bf16(part) },
        }
    }
}

/// Bytes, for any processor: on ARM the compiler makes what it can of it.
struct Bytes;

impl Arithmetic for Bytes {
    const TILE_ROWS: usize = 2;
    const TILE_PANELS: usize = 1;
    type Number = i32;
    type Sums = [i32; OUTPUTS];
    type Weights = [[i8; 4]; OUTPUTS];
    type Word = [u8; 4];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [0; OUTPUTS]
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Weights {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::Weights>().read() }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> Self::Word {
        // SAFETY: the caller's.
        unsafe { from.read() }.to_le_bytes()
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, word: Self::Word, weights: Self::Weights) -> Self::Sums {
        std::array::from_fn(|i| (0..4).fold(sums[i], |sum, j| sum + i32::from(word[j]) * i32::from(weights[i][j])))
    }

    #[inline(always)]
    unsafe fn numbers(sums: Self::Sums) -> [i32; OUTPUTS] {
        sums
    }
}

/// bf16 made f32 where they are multiplied: the upper half of an f32 each.
struct Halves<L>(L);

impl<L: Lanes> Arithmetic for Halves<L> {
    const TILE_ROWS: usize = 4;
    const TILE_PANELS: usize = if L::MANY { 3 } else { 1 };
    type Number = f32;
    /// The second is idle where a vector holds all.
    type Sums = [L; 2];
    /// The even inputs', and the odd ones'.
    type Weights = [[L; 2]; 2];
    type Word = [L; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: the caller's.
        unsafe { [L::zero(); 2] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Weights {
        // SAFETY: the caller's.
        unsafe {
            let words = from.cast::<[u32; OUTPUTS]>().read_unaligned();
            let (mut even, mut odd) = ([0.0; OUTPUTS], [0.0; OUTPUTS]);
            for i in 0..OUTPUTS {
                [even[i], odd[i]] = widen(words[i]);
            }
            let second = OUTPUTS - L::COUNT;
            [
                [L::load(even.as_ptr()), L::load(even.as_ptr().add(second))],
                [L::load(odd.as_ptr()), L::load(odd.as_ptr().add(second))],
            ]
        }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> Self::Word {
        // SAFETY: the caller's.
        unsafe {
            let [even, odd] = widen(from.read());
            [L::splat(even), L::splat(odd)]
        }
    }

    #[inline(always)]
    unsafe fn add(mut sums: Self::Sums, word: Self::Word, weights: Self::Weights) -> Self::Sums {
        // SAFETY: the caller's.
        unsafe {
            for i in 0..OUTPUTS / L::COUNT {
                sums[i] = sums[i].add_product(word[0], weights[0][i]).add_product(word[1], weights[1][i]);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn numbers(sums: Self::Sums) -> [f32; OUTPUTS] {
        let mut numbers = [0.0f32; OUTPUTS];
        // SAFETY: the caller's; where one vector holds all, both places are the same, and the first is written last.
        unsafe {
            sums[1].store(numbers.as_mut_ptr().add(OUTPUTS - L::COUNT));
            sums[0].store(numbers.as_mut_ptr());
        }
        numbers
    }
}

/// The two bf16 of a word.
#[inline(always)]
fn widen(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::tile::{Arithmetic, Finish, OUTPUTS, Part, multiply};

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
                    [
                        _mm256_dpbusd_avx_epi32(sums[0], word, weights[0]),
                        _mm256_dpbusd_avx_epi32(sums[1], word, weights[1]),
                    ]
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
            unsafe { _mm512_dpbf16_ps(sums, std::mem::transmute(word), std::mem::transmute(weights)) }
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
}
