//! Instruction sets for packed products of int8 and of bf16, and the choice of the best one that the processor has.

use super::super::amx::{self, AmxToken};
use super::super::simd::{self, SimdF32, SimdKernel};
use super::epilogue::Epilogue;
use super::microkernel::{CacheLine, MacroBlock, MicroKernelOps, macro_kernel};
use super::packing::{NR, XFormat, XLayout};
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use super::wasm;
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{amx as amx_gemm, blocked};
#[cfg(target_arch = "aarch64")]
use super::{arm, arm_pairs};

/// An instruction set for products of int8. A value proves that the processor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8Isa(Int8Variant);

#[derive(Clone, Copy, Debug)]
enum Int8Variant {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Like [`Self::AvxVnni`], but in the encoding of AVX-512. Both share a kernel, which can be tested on a processor with either
    /// one.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni256,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `smull`, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    NeonMull,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
    Amx(AmxToken),
}

impl Int8Isa {
    /// Returns all instruction sets that the processor has, the best one last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        let mut all = [Some(Self(Int8Variant::Plain)), None, None, None, None, None];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            all[1] = avx2.then_some(Self(Int8Variant::Avx2));
            all[2] = (avx512 && avx2).then_some(Self(Int8Variant::Avx512Vnni256));
            all[3] = (avx2 && is_x86_feature_detected!("avxvnni")).then_some(Self(Int8Variant::AvxVnni));
            all[4] = avx512.then_some(Self(Int8Variant::Avx512Vnni));
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            all[1] = is_aarch64_feature_detected!("neon").then_some(Self(Int8Variant::NeonMull));
            all[2] = is_aarch64_feature_detected!("dotprod").then_some(Self(Int8Variant::NeonDot));
            all[3] = is_aarch64_feature_detected!("i8mm").then_some(Self(Int8Variant::NeonI8mm));
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        {
            all[1] = Some(Self(Int8Variant::Simd128));
        }
        all[5] = AmxToken::int8().map(|token| Self(Int8Variant::Amx(token)));
        all.into_iter().flatten()
    }

    /// Returns the best instruction set that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Int8Variant::Plain))
    }

    /// Returns the packed layout of x.
    pub(super) fn x_layout(self) -> XLayout {
        let (mr, format) = match self.0 {
            Int8Variant::Plain => (PlainInt8::MR, XFormat::Panel),
            #[cfg(target_arch = "x86_64")]
            Int8Variant::Avx2 => (x86::YMM_MR, XFormat::Widened),
            #[cfg(target_arch = "x86_64")]
            Int8Variant::AvxVnni | Int8Variant::Avx512Vnni256 => (x86::YMM_MR, XFormat::Panel),
            #[cfg(target_arch = "x86_64")]
            Int8Variant::Avx512Vnni => (x86::Avx512Vnni::MR, XFormat::Panel),
            #[cfg(target_arch = "aarch64")]
            Int8Variant::NeonMull => (arm_pairs::MULL_MR, XFormat::Pairs),
            #[cfg(target_arch = "aarch64")]
            Int8Variant::NeonDot => (arm::NeonDot::MR, XFormat::Panel),
            #[cfg(target_arch = "aarch64")]
            Int8Variant::NeonI8mm => (arm_pairs::MMLA_MR, XFormat::Pairs),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Int8Variant::Simd128 => (wasm::Dot16::MR, XFormat::Widened),
            Int8Variant::Amx(_) => (amx::TILE_ROWS, XFormat::Tiled),
        };
        XLayout { mr, format }
    }

    /// Returns `true` if x is packed as signed int8, `false` if it is unsigned with a zero point of 128.
    pub(super) fn x_is_signed(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "aarch64")]
            Int8Variant::NeonMull | Int8Variant::NeonDot | Int8Variant::NeonI8mm => true,
            Int8Variant::Amx(_) => true,
            _ => false,
        }
    }

    /// Multiplies a block.
    ///
    /// # Safety
    ///
    /// No other thread accesses the outputs of the block's rows and panels.
    pub(super) unsafe fn macro_kernel(self, block: MacroBlock<'_, impl Epilogue<i32>>) {
        // SAFETY: only `all` creates values, after detecting the processor's features. The caller guarantees the rest.
        unsafe {
            match self.0 {
                Int8Variant::Plain => macro_kernel::<PlainInt8, _>(&block),
                #[cfg(target_arch = "x86_64")]
                Int8Variant::Avx2 => block.with_widened_w(|w, widened| x86::widen_int8(w, widened), |block| x86::avx2(&block)),
                #[cfg(target_arch = "x86_64")]
                Int8Variant::AvxVnni => x86::avx_vnni(&block),
                #[cfg(target_arch = "x86_64")]
                Int8Variant::Avx512Vnni256 => x86::avx512_vnni256(&block),
                #[cfg(target_arch = "x86_64")]
                Int8Variant::Avx512Vnni => x86::avx512_vnni(&block),
                #[cfg(target_arch = "aarch64")]
                Int8Variant::NeonMull => arm_pairs::mull(&block),
                #[cfg(target_arch = "aarch64")]
                Int8Variant::NeonDot => arm::neon_dot(&block),
                #[cfg(target_arch = "aarch64")]
                Int8Variant::NeonI8mm => arm_pairs::i8mm(block),
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                Int8Variant::Simd128 => {
                    block.with_widened_w(|w, widened| wasm::widen_int8(w, widened), |block| macro_kernel::<wasm::Dot16, _>(&block));
                }
                Int8Variant::Amx(token) => block.with_tiled_w(|block| amx_gemm::int8(token, &block)),
            }
        }
    }
}

/// An instruction set for products of bf16. A value proves that the processor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16Isa(Bf16Variant);

#[derive(Clone, Copy, Debug)]
enum Bf16Variant {
    /// Products of f32, to which the operands are widened.
    Widened(simd::SimdLevel),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
    Amx(AmxToken),
}

impl Bf16Isa {
    /// Returns all instruction sets that the processor has, the best one last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let native = simd::SimdLevel::best().has_bf16().then_some(Self(Bf16Variant::Avx512Bf16));
        #[cfg(target_arch = "aarch64")]
        let native = simd::SimdLevel::best().has_bf16().then_some(Self(Bf16Variant::NeonBf16));
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let native = None;
        let amx = AmxToken::bf16().map(|token| Self(Bf16Variant::Amx(token)));
        let widened: Vec<_> = simd::SimdLevel::all().map(|level| Self(Bf16Variant::Widened(level))).collect();
        widened.into_iter().chain(native).chain(amx)
    }

    /// Returns the best instruction set that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Bf16Variant::Widened(simd::SimdLevel::best())))
    }

    /// Returns the packed layout of x.
    pub(super) fn x_layout(self) -> XLayout {
        match self.0 {
            Bf16Variant::Widened(level) => XLayout { format: XFormat::Widened, ..blocked::x_layout(level) },
            #[cfg(target_arch = "x86_64")]
            Bf16Variant::Avx512Bf16 => XLayout { mr: x86::Avx512Bf16::MR, format: XFormat::Panel },
            #[cfg(target_arch = "aarch64")]
            Bf16Variant::NeonBf16 => XLayout { mr: arm_pairs::MMLA_MR, format: XFormat::Pairs },
            Bf16Variant::Amx(_) => XLayout { mr: amx::TILE_ROWS, format: XFormat::Tiled },
        }
    }

    /// Multiplies a block.
    ///
    /// # Safety
    ///
    /// No other thread accesses the outputs of the block's rows and panels.
    pub(super) unsafe fn macro_kernel(self, block: MacroBlock<'_, impl Epilogue<f32>>) {
        match self.0 {
            Bf16Variant::Widened(level) => {
                block.with_widened_w(
                    |w, widened| level.run(WidenBf16 { w, widened }),
                    |block| level.run(blocked::F32MacroKernel(block)),
                );
            }
            // SAFETY: only `all` creates values, after detecting the processor's features. The caller guarantees the rest.
            #[cfg(target_arch = "x86_64")]
            Bf16Variant::Avx512Bf16 => unsafe { x86::avx512_bf16(&block) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Bf16Variant::NeonBf16 => unsafe { arm_pairs::bf16(block) },
            // SAFETY: as above.
            Bf16Variant::Amx(token) => block.with_tiled_w(|block| unsafe { amx_gemm::bf16(token, &block) }),
        }
    }
}

/// Widens panels of w from bf16 to f32: each cache line becomes one of its even inputs and one of its odd inputs.
struct WidenBf16<'a> {
    w: &'a [u8],
    widened: &'a mut [CacheLine],
}

impl SimdKernel for WidenBf16<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        assert!(self.w.len() >= self.widened.len() / 2 * size_of::<CacheLine>(), "two widened lines for each line");
        let (from, to) = (self.w.as_ptr().cast::<u32>(), self.widened.as_mut_ptr().cast::<f32>());
        for line in 0..self.widened.len() / 2 {
            for output in (0..NR).step_by(S::LANES) {
                // SAFETY: w has this many lines, as checked above, and `widened` twice as many; the processor has the instructions.
                unsafe {
                    let [even, odd] = S::load_bf16_pairs(from.add(line * NR + output));
                    even.store(to.add(2 * line * NR + output));
                    odd.store(to.add((2 * line + 1) * NR + output));
                }
            }
        }
    }
}

/// Products of int8 in portable Rust.
struct PlainInt8;

impl MicroKernelOps for PlainInt8 {
    const MR: usize = 4;
    const PANELS: usize = 1;
    type Accumulator = i32;
    type AccVector = [i32; NR];
    type WVector = [[i8; 4]; NR];
    type XVector = [u8; 4];

    #[inline(always)]
    unsafe fn zero() -> Self::AccVector {
        [0; NR]
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> Self::WVector {
        // SAFETY: the caller guarantees 64 bytes; an array of bytes needs no alignment.
        unsafe { from.cast::<Self::WVector>().read() }
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> Self::XVector {
        // SAFETY: the caller guarantees one dword.
        unsafe { from.read() }.to_le_bytes()
    }

    #[inline(always)]
    unsafe fn accumulate(accumulators: Self::AccVector, x: Self::XVector, w: Self::WVector) -> Self::AccVector {
        std::array::from_fn(|i| (0..4).fold(accumulators[i], |sum, j| sum + i32::from(x[j]) * i32::from(w[i][j])))
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: Self::AccVector) -> [i32; NR] {
        accumulators
    }
}
