//! Instructions that multiply words of bytes or of bf16, and the choice of the best that the processor has.

use super::super::lanes::{self, Lanes};
use super::tile::{Arithmetic, Finish, OUTPUTS, Part, multiply};
#[cfg(target_arch = "x86_64")]
use super::x86;

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
        let native =
            (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bf16"))
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
            let from = from.cast::<u32>();
            let ([even, odd], [even2, odd2]) = (L::load_pairs(from), L::load_pairs(from.add(OUTPUTS - L::COUNT)));
            [[even, even2], [odd, odd2]]
        }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> Self::Word {
        // SAFETY: the caller's.
        unsafe {
            let word = from.read();
            [L::splat(f32::from_bits(word << 16)), L::splat(f32::from_bits(word & 0xffff_0000))]
        }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, [even, odd]: Self::Word, weights: Self::Weights) -> Self::Sums {
        // SAFETY: the caller's.
        unsafe {
            let first = sums[0].add_product(even, weights[0][0]).add_product(odd, weights[1][0]);
            if L::COUNT == OUTPUTS {
                return [first, sums[1]];
            }
            [first, sums[1].add_product(even, weights[0][1]).add_product(odd, weights[1][1])]
        }
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
