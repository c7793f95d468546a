//! Instructions that multiply words of bytes or of bf16, and the choice of the best that the processor has.

use super::super::amx::{self, AmxToken};
use super::super::simd::{self, SimdF32, SimdKernel};
#[cfg(target_arch = "aarch64")]
use super::arm;
use super::microkernel::{Arithmetic, Finish, Layout, Line, OUTPUTS, Part, Words, multiply};
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{amx as amx_gemm, blocked};

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
    #[cfg(target_arch = "aarch64")]
    Dot,
    Amx(AmxToken),
}

impl Int8 {
    /// All that the processor has, the best last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        let mut all = [Some(Self(Int8Kind::Plain)), None, None, None, None, None];
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
        #[cfg(target_arch = "aarch64")]
        {
            all[1] = std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(Int8Kind::Dot));
        }
        all[5] = AmxToken::int8().map(|token| Self(Int8Kind::Amx(token)));
        all.into_iter().flatten()
    }

    /// The best that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Int8Kind::Plain))
    }

    /// How they want the rows of x.
    pub(super) fn layout(self) -> Layout {
        let (rows, words) = match self.0 {
            Int8Kind::Plain => (Bytes::ROWS, Words::Narrow),
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Avx2 => (x86::BY_256_ROWS, Words::Wide),
            #[cfg(target_arch = "x86_64")]
            Int8Kind::AvxVnni | Int8Kind::Vnni256 => (x86::BY_256_ROWS, Words::Narrow),
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Vnni512 => (x86::Vnni512::ROWS, Words::Narrow),
            #[cfg(target_arch = "aarch64")]
            Int8Kind::Dot => (arm::Dot::ROWS, Words::Narrow),
            Int8Kind::Amx(_) => (amx::TILE_ROWS, Words::Grouped),
        };
        Layout { rows, words }
    }

    /// Whether the bytes of x have a sign.
    pub(super) fn signed(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "aarch64")]
            Int8Kind::Dot => true,
            Int8Kind::Amx(_) => true,
            _ => false,
        }
    }

    /// Multiplies a part that nobody else multiplies at the same time.
    pub(super) fn multiply(self, part: Part<'_, impl Finish<i32>>) {
        // SAFETY: a value is made in `all` only, after asking the processor; and the caller's.
        unsafe {
            match self.0 {
                Int8Kind::Plain => multiply::<Bytes, _>(&part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Avx2 => part.widened(|weights, wide| x86::widen_bytes(weights, wide), |part| x86::avx2(&part)),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::AvxVnni => x86::avx_vnni(&part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Vnni256 => x86::vnni256(&part),
                #[cfg(target_arch = "x86_64")]
                Int8Kind::Vnni512 => x86::vnni512(&part),
                #[cfg(target_arch = "aarch64")]
                Int8Kind::Dot => arm::dot(&part),
                Int8Kind::Amx(token) => part.grouped(|part| amx_gemm::int8(token, &part)),
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
    Widened(simd::SimdLevel),
    #[cfg(target_arch = "x86_64")]
    Avx512,
    Amx(AmxToken),
}

impl Bf16 {
    /// All that the processor has, the best last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let native = simd::SimdLevel::best().has_bf16().then_some(Self(Bf16Kind::Avx512));
        #[cfg(not(target_arch = "x86_64"))]
        let native = None;
        let matrices = AmxToken::bf16().map(|token| Self(Bf16Kind::Amx(token)));
        let widened: Vec<_> = simd::SimdLevel::all().map(|level| Self(Bf16Kind::Widened(level))).collect();
        widened.into_iter().chain(native).chain(matrices)
    }

    /// The best that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Bf16Kind::Widened(simd::SimdLevel::best())))
    }

    /// How they want the rows of x.
    pub(super) fn layout(self) -> Layout {
        match self.0 {
            Bf16Kind::Widened(level) => Layout { words: Words::Wide, ..blocked::layout(level) },
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => Layout { rows: x86::Avx512Bf16::ROWS, words: Words::Narrow },
            Bf16Kind::Amx(_) => Layout { rows: amx::TILE_ROWS, words: Words::Grouped },
        }
    }

    /// Multiplies a part that nobody else multiplies at the same time.
    pub(super) fn multiply(self, part: Part<'_, impl Finish<f32>>) {
        match self.0 {
            Bf16Kind::Widened(level) => {
                part.widened(|weights, wide| level.run(Widen { weights, wide }), |part| level.run(blocked::Multiply(part)));
            }
            // SAFETY: a value is made in `all` only, after asking the processor; and the caller's.
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512 => unsafe { x86::avx512_bf16(&part) },
            // SAFETY: as before.
            Bf16Kind::Amx(token) => part.grouped(|part| unsafe { amx_gemm::bf16(token, &part) }),
        }
    }
}

/// Weights of bf16 as f32: of each line the even inputs, then the odd ones.
struct Widen<'a> {
    weights: &'a [u8],
    wide: &'a mut [Line],
}

impl SimdKernel for Widen<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        assert!(self.weights.len() >= self.wide.len() / 2 * size_of::<Line>(), "a line for two");
        let (from, to) = (self.weights.as_ptr().cast::<u32>(), self.wide.as_mut_ptr().cast::<f32>());
        for line in 0..self.wide.len() / 2 {
            for output in (0..OUTPUTS).step_by(S::LANES) {
                // SAFETY: so many lines are there, as seen above, and twice as many places; the processor has the lanes.
                unsafe {
                    let [even, odd] = S::load_bf16_pairs(from.add(line * OUTPUTS + output));
                    even.store(to.add(2 * line * OUTPUTS + output));
                    odd.store(to.add((2 * line + 1) * OUTPUTS + output));
                }
            }
        }
    }
}

/// Bytes, for any processor.
struct Bytes;

impl Arithmetic for Bytes {
    const ROWS: usize = 4;
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
